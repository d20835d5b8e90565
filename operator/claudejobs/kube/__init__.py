"""The edge to the Kubernetes API: client, watch, logs, and the controller that carries decisions out."""
