"""Block sizes of the forward pass: the engine allocates by them, and the plan counts what it will allocate."""

BLOCK = 2048  # prompt tokens that pass a layer before any passes the next: each expert is asked for once
CHUNK = 512  # of them, that attend at once
GROUPED = 8 * CHUNK  # tokens that a group of experts on a GPU takes at once, each counted for every expert
SCORES = 4_000_000  # attention scores held at once
LOGITS = 4_000_000  # of next tokens, where a text is scored
MAX_TOKENS = 8  # that go through a decode step together
BUCKET = 64  # keys are scored in multiples of this
# The same of native attention, which keeps them for each thread: see c/generic/prompt_attention.inc.h
KEYS = 96  # scored at once
QUERIES = 128  # of a task
SHARING = 512  # of a task that expands latents
THREADS = 16  # that the plan counts
STAGED = 2  # experts on their way to a device
# Of mixers with a state: see c/generic/recurrent.inc.h
STATE_TILE = 32  # columns of a head's state that lie together
STATE_STEP = 64  # tokens of a prompt that pass a recurrence together; states are kept at multiples of it
SNAPSHOTS = 3  # states of a text that are kept to go back to
