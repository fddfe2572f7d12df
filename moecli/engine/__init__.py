"""The forward pass in torch: decoder, attention, router, KV cache, sampling, generation.

Shapes in this room: T tokens, D hidden width, H heads, K key/value heads, G = H / K, d head width,
n cached positions, E experts, A active experts, V vocabulary.
"""
