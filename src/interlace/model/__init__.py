"""The one model definition: what trains is what evaluates, generates and serves."""
