import pytest

from istiod_ca_bridge.metrics import Metrics
from istiod_ca_bridge.worker_figures import merged
from istiod_ca_bridge.worker_messages import Ended, Figures, Health, Message, line_of, read_line


@pytest.mark.parametrize(
    "message",
    [
        Health(serving=True),
        Figures('a{b="c"} 1\n# é\n'),
        Ended("it ends", "do that", is_config=True),
    ],
)
def test_a_message_is_one_line_and_is_read_as_it_was(message: Message) -> None:
    line = line_of(message)

    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert read_line(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"figures",
        b"\xff\n",
        b"[]",
        b"{}",
        b'{"kind": "health"}',
        b'{"kind": "health", "serving": 1}',
        b'{"kind": "health", "serving": true, "more": 1}',
        b'{"kind": "figures", "text": null}',
        b'{"kind": "ended", "error": "e", "hint": "h", "is_config": "no"}',
        b'{"kind": ["health"], "serving": true}',
        b'{"kind": "other", "serving": true}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="no message of a worker"):
        read_line(line)


def test_each_family_comes_once_and_each_sample_names_its_worker() -> None:
    first, second = Metrics(), Metrics()
    first.csrs.inc(3)
    second.csrs.inc(4)
    second.condition("Ready", holds=True)
    texts = {"1": first.exposition().decode(), "2": second.exposition().decode()}

    lines = merged("# TYPE own gauge\nown 1.0\n", texts).splitlines()

    assert lines[:2] == ["# TYPE own gauge", "own 1.0"]
    assert 'citadel_server_csr_count{worker="1"} 3.0' in lines
    assert 'citadel_server_csr_count{worker="2"} 4.0' in lines
    assert 'istiod_ca_bridge_condition{worker="2",type="Ready"} 1.0' in lines
    heads = [line for line in lines if line.startswith("#")]
    assert len(heads) == len(set(heads))
    samples = [line for line in lines if not line.startswith("#")]
    expected = sum(
        not line.startswith("#") for text in texts.values() for line in text.splitlines()
    )
    assert len(samples) == len(set(samples)) == expected + 1


def test_the_samples_of_a_family_stay_together() -> None:
    histogram = '# TYPE h histogram\nh_bucket{le="1"} 1\nh_count 1\n# TYPE g gauge\ng 2\n'

    lines = merged("", {"1": histogram, "2": histogram}).splitlines()

    assert lines.index("# TYPE g gauge") == 5
    assert lines[1:5] == [
        'h_bucket{worker="1",le="1"} 1',
        'h_count{worker="1"} 1',
        'h_bucket{worker="2",le="1"} 1',
        'h_count{worker="2"} 1',
    ]
