"""What `capvisor bench` measures."""
