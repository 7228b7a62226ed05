"""Models behind HTTP: a batcher over rows of many requests, an endpoint for each model, replicas on Ray Serve."""
