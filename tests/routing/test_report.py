"""The report, on a trace of the built-in model and on drawn ones."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from moecli.routing.report import RoutingReport, report
from moecli.routing.trace import bare
from tests.support.traces import recorded_trace, uniform


@pytest.fixture(scope="module")
def analysed() -> RoutingReport:
    return report(recorded_trace())


@pytest.mark.slow
def test_one_prompt_of_each_language_gives_no_verdict_on_the_languages(analysed: RoutingReport) -> None:
    found = analysed.domain_distances
    assert found is not None and not found.tested and not found.beyond.any()
    assert all(layer.mean > 0.01 and layer.chance is None for layer in found.layers[1:])
    assert analysed.layers[3].chances == {}, "six prompts"
    middle = analysed.layers[3]
    assert (middle.locality.top1 or 0) > (middle.locality_baseline.limit.top1 or 1)
    assert (middle.vocabulary.lift or 0) > (middle.vocabulary.shuffled_lift or 9) * 1.2
    assert analysed.verdict is not None
    assert analysed.verdict.pays


def test_the_losses_of_a_uniform_gate() -> None:
    """Auxiliary loss k, gate entropy 1."""
    plain = bare({0: (16, uniform(16, 4, 500))})
    layer = replace(
        plain.layers[0],
        entropy=np.ones(500, np.float32),
        mean_probabilities=np.full((1, 16), 1 / 16),
        log_sum_squared=7.5,
    )
    found = report(replace(plain, layers=(layer,)), with_replay=False).layers[0]
    assert found.auxiliary_loss == pytest.approx(4)
    assert found.gate_entropy == 1
    assert found.z_loss == 7.5


def test_few_tokens_are_said_to_be_few() -> None:
    assert report(bare({0: (64, uniform(64, 8, 20))}), with_replay=False).few_tokens
    assert not report(bare({0: (64, uniform(64, 8, 2000))}), with_replay=False).few_tokens


def test_no_torch_in_the_room() -> None:
    code = "import sys, moecli.routing.report, moecli.routing.trace_file, moecli.routing.builder, "
    code += "moecli.routing.agreement, moecli.routing.exchange; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
