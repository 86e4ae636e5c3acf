"""The adapter zoo: LoRAs trained by PEFT and the HF Trainer, and the data they were trained on.

Nothing here is imported by ``regraft``. The zoo stands in for a user's own adapters: it is made by the tools
that users have, from data that ships inside ordinary packages.
"""
