"""Block sizes of the forward pass: the engine allocates by them, and the plan counts what it will allocate."""

CHUNK = 512  # prompt tokens per pass through the layers
SCORES = 4_000_000  # attention scores held at once
BUCKET = 64  # keys are scored in multiples of this
STAGED = 2  # experts on their way to a device
