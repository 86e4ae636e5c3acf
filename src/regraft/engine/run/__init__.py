"""The engine's thread: plans, batches, the native step, and drawing tokens."""
