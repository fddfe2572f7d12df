"""The models on this machine: what a MODEL names, and listing, inspecting, verifying, removing and pulling them."""
