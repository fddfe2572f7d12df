"""What the engine has done since it began, for /metrics in the text format of Prometheus."""

from __future__ import annotations


class Metrics:
    """Counts, changed by the engine's thread alone."""

    def __init__(self) -> None:
        self.answers = 0  # that ended by themselves
        self.failures = 0
        self.abandoned = 0  # answers whose client left
        self.prompt_tokens = 0  # read
        self.cached_tokens = 0  # known from earlier texts
        self.tokens = 0  # generated
        self.steps = 0  # of one or more texts
        self.loads = 0

    def text(self, running: int, waiting: int, experts: tuple[int, int, int]) -> str:
        """`experts`: hits, misses and bytes read of the models that are loaded."""
        hits, misses, read = experts
        rows = (
            ("answers_total", "counter", "Answers that ended by themselves.", self.answers),
            ("failures_total", "counter", "Answers that failed.", self.failures),
            ("abandoned_total", "counter", "Answers whose client left.", self.abandoned),
            ("prompt_tokens_total", "counter", "Prompt tokens read.", self.prompt_tokens),
            ("cached_tokens_total", "counter", "Prompt tokens known from earlier texts.", self.cached_tokens),
            ("tokens_total", "counter", "Tokens generated.", self.tokens),
            ("decode_steps_total", "counter", "Steps in which one or more texts grew by a token.", self.steps),
            ("loads_total", "counter", "Times that a model was loaded.", self.loads),
            ("running", "gauge", "Answers under way.", running),
            ("waiting", "gauge", "Requests that wait for their turn.", waiting),
            ("expert_hits", "gauge", "Experts found in memory, of the loaded models.", hits),
            ("expert_misses", "gauge", "Experts read from disk, of the loaded models.", misses),
            ("expert_bytes_read", "gauge", "Bytes of experts read from disk, of the loaded models.", read),
        )
        lines = (
            f"# HELP moecli_{name} {help}\n# TYPE moecli_{name} {kind}\nmoecli_{name} {value}\n"
            for name, kind, help, value in rows
        )
        return "".join(lines)
