"""Counts of parameters, and the arithmetic around a clock that the test turns by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from talas_lib import efficiency
from talas_lib.encoders import Encoder
from talas_lib.static_encoder import StaticEncoder


@pytest.mark.parametrize("arch", ["bert", "mpnet"])
def test_parameters_with_and_without_the_table(arch, tiny_encoder_folder):
    encoder = Encoder.load(tiny_encoder_folder(arch), pooling="mean")
    before = efficiency.count_parameters(encoder)
    assert before["parameters"] == sum(p.numel() for p in encoder.model.parameters())
    table = len(encoder.tokenizer) * encoder.dim
    assert before["parameters"] - before["parameters_without_embeddings"] == pytest.approx(table, rel=0.1)
    assert before["parameters_without_embeddings"] > 0
    encoder.projection = nn.Linear(encoder.dim, 5)  # what stands behind the pooling is part of the model
    assert efficiency.count_parameters(encoder)["parameters"] == before["parameters"] + 5 * encoder.dim + 5


def test_a_static_encoder_is_all_table(tiny_encoder_folder):
    tokenizer = Encoder.load(tiny_encoder_folder("bert"), pooling="mean").tokenizer
    encoder = StaticEncoder(torch.zeros(len(tokenizer), 3), tokenizer)
    assert efficiency.count_parameters(encoder) == {
        "parameters": 3 * len(tokenizer),
        "parameters_without_embeddings": 0,
    }


def test_the_sample_is_fixed_distinct_and_spread():
    texts = [f"text {i // 2}" for i in range(4000)]
    chosen = efficiency.sample(texts)
    assert len(set(chosen)) == len(chosen) == efficiency.SENTENCES >= 256
    assert chosen == efficiency.sample(texts)
    assert (chosen[0], chosen[-1]) == ("text 0", "text 1999")
    assert efficiency.sample(["a", "b", "a"]) == ["a", "b"]


class Clock:
    """Seconds that go by as told, one number a pass."""

    def __init__(self, *passes):
        self.passes, self.now, self.encoded = list(passes), 0.0, []

    def __call__(self):
        return self.now

    def encode(self, texts):
        self.encoded.append(list(texts))
        self.now += self.passes.pop(0)


def test_time_is_the_median_of_three_passes():
    clock = Clock(4.0, 1.0, 2.0)
    assert efficiency.ms_per_sentence(clock.encode, ["a", "b"], clock=clock) == 1000.0
    assert clock.encoded == [["a", "b"]] * 3


def test_a_slow_encoder_is_measured_once():
    clock = Clock(30.0)
    assert efficiency.ms_per_sentence(clock.encode, ["a", "b", "c"], clock=clock) == 10_000.0


def test_a_measurement_says_what_it_was_made_on(tiny_encoder_folder, tiny_texts):
    encoder = Encoder.load(tiny_encoder_folder("bert"), pooling="mean")
    found = efficiency.measure(encoder, encoder.encode, tiny_texts)
    assert found["sentences"] == 256
    assert (found["threads"], found["device"]) == (torch.get_num_threads(), "cpu")
    assert found["ms_per_sentence"] > 0


def test_score_for_a_million_parameters_and_for_a_millisecond():
    found = efficiency.with_score({"parameters": 20_000_000, "ms_per_sentence": 0.5}, 60.0)
    assert (found["score_per_million_parameters"], found["score_per_ms"]) == (3.0, 120.0)
