"""The contract of implicit 0.7: its class, its answers, and running its programs unchanged."""
