"""Several engines behind one address: Ray Serve keeps the replicas, and sends a request where its adapter lies."""
