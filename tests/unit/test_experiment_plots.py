import io

import numpy as np
import pytest

from streaming_sbp.experiment import history, plots
from streaming_sbp.files import write_json
from tests.unit.run_records import SHARE, FakeRun, RecordWriter, make_run

pytestmark = pytest.mark.skipif(not plots.AVAILABLE, reason="needs the extra `plots`")


def size_of(png):
    from matplotlib.image import imread

    return imread(io.BytesIO(png), format="png").shape[:2]


def test_every_figure_of_a_whole_run(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run, resume_at_s=200).write()
    drawn = plots.draw_all(history.load(run))
    assert [plot.name for plot in drawn] == ["loss", "mix", "deviation", "throughput"]
    for plot in drawn:
        assert size_of(plot.png) == pytest.approx([plots.SIZE_INCHES[k] * plots.DPI for k in (1, 0)], abs=1)
        assert plot.title
        assert plot.description
    again = plots.draw_all(history.load(run))
    assert [plot.png for plot in again] == [plot.png for plot in drawn]


def test_a_run_of_real_text_only_has_no_mix(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run, synthetic=False, seconds=20).write()
    assert [plot.name for plot in plots.draw_all(history.load(run))] == ["loss", "throughput"]


def test_no_records_no_figures(tmp_path):
    assert plots.draw_all(history.load(make_run(tmp_path / "run"))) == []


def test_similarities_are_drawn_where_there_are_any(tmp_path):
    run = make_run(tmp_path / "run")
    edges, none = [k / 20 for k in range(21)], [0] * 20
    found = {"bin_edges": edges, "kept_pairs": none, "all_neighbours": none, "random_pairs": none, "largest": []}
    write_json(run.pairs / "statistics.json", {"threshold": 0.5, "similarity": found})
    assert plots.draw_all(history.load(run)) == []
    found |= {"all_neighbours": list(range(20))}
    write_json(run.pairs / "statistics.json", {"threshold": 0.5, "similarity": found})
    (without_pairs,) = plots.draw_all(history.load(run))
    found |= {"kept_pairs": [0] * 10 + [7] * 10, "random_pairs": [9000, 900, 90] + [0] * 17}
    write_json(run.pairs / "statistics.json", {"threshold": 0.5, "similarity": found})
    (drawn,) = plots.draw_all(history.load(run))
    assert drawn.name == without_pairs.name == "similarity"
    assert drawn.png != without_pairs.png
    assert size_of(drawn.png) == pytest.approx([plots.SIZE_INCHES[k] * plots.DPI for k in (1, 0)], abs=1)


@pytest.mark.parametrize("losses", [[float("nan")] * 3, [5.0, float("inf"), float("nan")], [3.0]])
def test_losses_that_are_not_finite_are_left_out_of_the_picture(tmp_path, losses):
    run = make_run(tmp_path / "run")
    record = RecordWriter(run, "trainer")
    for k, loss in enumerate(losses, start=1):
        record(float(k), "train", tokens=k, loss={"real": loss, "synthetic": None}, tokens_per_second=None)
        record(float(k), "eval", tokens=k, heldout_loss=loss)
    assert [plot.name for plot in plots.draw_all(history.load(run))] == ["loss"]


def test_windowed_share_is_of_the_tokens_in_the_window():
    tokens = np.arange(0, 1001, 10)
    synthetic = np.where(tokens < 500, 0, (tokens - 500) * SHARE)
    trains = [
        {"tokens": int(t), "trained_tokens": {"synthetic": float(s)}} for t, s in zip(tokens, synthetic, strict=True)
    ]
    middles, shares = plots.windowed_share(trains, num_windows=10)
    assert middles.tolist() == [50 + 100 * k for k in range(10)]
    assert shares == pytest.approx([0.0] * 5 + [SHARE] * 5)
    assert [part.tolist() for part in plots.windowed_share(trains[:1])] == [[], []]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
def test_running_mean_is_a_mean_of_neighbours(window):
    values = np.random.default_rng(0).normal(size=20)
    found = plots.running_mean(values, window)
    assert len(found) == len(values)
    width = min(window, len(values))
    for i in range(len(values)):
        low = i - (width - 1) // 2 - (width - 1) % 2
        neighbours = values[max(0, low) : max(0, low + width)]
        assert found[i] == pytest.approx(neighbours.mean())
