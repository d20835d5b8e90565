"""What the tests of the pure parts share: objects as the API server sends them, and a world to run the operator in."""
