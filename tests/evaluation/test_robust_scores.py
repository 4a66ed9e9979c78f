"""DD-Ranking's scores by numbers worked out by hand, and beside the arithmetic of its own package where that is."""

import math
from itertools import count

import pytest

from potstill.errors import PotstillError
from potstill.evaluation import scores
from potstill.evaluation.scores import ACCURACIES, needed

GIVEN = {
    "full": 0.86, "distilled_hard": 0.60, "distilled": 0.66, "random": 0.46, "distilled_plain": 0.55,
    "random_plain": 0.41,
}  # fmt: skip


def test_the_four_scores_by_hand():
    """α = 0.5 · 0.20 − 0.5 · 0.26 = −0.03; β = 0.5 · 0.20 + 0.5 · 0.14 = 0.17; e = 2.718282, e⁻¹ = 0.367879.

    LRS = (0.970446 − 0.367879) / 2.350402;  ARS = (1.185305 − 0.367879) / 2.350402
    """
    found = scores.scores(GIVEN)
    assert found == pytest.approx({"hlr": 0.26, "ior": 0.20, "lrs": 0.256367, "ars": 0.347781}, abs=1e-6)


def test_the_weight_is_the_share_of_the_first_difference():
    """w = 0.25: α = 0.05 − 0.195 = −0.145, e^α = 0.865022; β = 0.05 + 0.105 = 0.155, e^β = 1.167658."""
    found = scores.scores(GIVEN, weight=0.25)
    assert found["lrs"] == pytest.approx((0.865022 - 0.367879) / 2.350402, abs=1e-6)
    assert found["ars"] == pytest.approx((1.167658 - 0.367879) / 2.350402, abs=1e-6)
    assert scores.label_robust(hlr=0.3, ior=0.1, weight=1) == scores.normalised(0.1)
    assert scores.label_robust(hlr=0.3, ior=0.1, weight=0) == scores.normalised(-0.3)
    assert scores.augmentation_robust(0.3, 0.1, weight=1) == scores.normalised(0.3)


def test_scores_run_from_0_to_1():
    """The worst set teaches nothing where both others teach all, the best all where random images teach nothing."""
    assert scores.normalised(-1) == 0
    assert scores.normalised(1) == pytest.approx(1)
    assert scores.normalised(0) == pytest.approx(1 / (1 + math.e))  # (1 − e⁻¹) / (e − e⁻¹), in short: 0.268941
    assert scores.label_robust(hlr=1, ior=-1) == 0
    assert scores.augmentation_robust(1, 1) == pytest.approx(1)


def test_what_each_score_needs():
    assert needed(["hlr"]) == ("full", "distilled_hard")
    assert needed(["ior"]) == ("distilled", "random")
    assert needed(["lrs"]) == ("full", "distilled_hard", "distilled", "random")
    assert needed(["ars"]) == ("distilled", "random", "distilled_plain", "random_plain")
    assert needed() == tuple(ACCURACIES)


def test_a_function_is_asked_once_for_each_accuracy_that_is_needed():
    asked = []
    found = scores.scores(lambda name: asked.append(name) or GIVEN[name], ["ior", "hlr"])
    assert asked == ["full", "distilled_hard", "distilled", "random"]
    assert found == pytest.approx({"ior": 0.20, "hlr": 0.26})
    assert list(found) == ["ior", "hlr"]


def test_missing_accuracies_are_named_with_what_to_train():
    with pytest.raises(PotstillError) as caught:
        scores.scores({"distilled": 0.6, "random": 0.5}, ["ior", "ars"])
    for name in ("distilled_plain", "random_plain"):
        assert f"{name}: {ACCURACIES[name]}" in str(caught.value)
    assert "random: as many" not in str(caught.value)
    assert scores.scores({"distilled": 0.6, "random": 0.5}, ["ior"])["ior"] == pytest.approx(0.1)


@pytest.mark.parametrize("value", [66.0, -0.1, float("nan")])
def test_per_cents_and_other_non_fractions_are_refused(value):
    with pytest.raises(PotstillError, match="accuracy distilled .*fractions of 1"):
        scores.scores({**GIVEN, "distilled": value})


def test_an_unknown_score_and_a_weight_out_of_range_are_refused():
    with pytest.raises(PotstillError, match="score 'ddrs': choose among hlr, ior, lrs, ars"):
        scores.scores(GIVEN, ["ddrs"])
    with pytest.raises(PotstillError, match="weight 1.5"):
        scores.scores(GIVEN, weight=1.5)


def test_what_a_run_has_measured_already():
    """A set of soft labels stands beside random images with soft labels, one of hard labels beside those with hard."""
    accuracy = {name: {"mean": mean} for name, mean in
                {"distilled": 0.66, "random": 0.4, "random_soft": 0.46, "full": 0.86}.items()}  # fmt: skip
    soft, hard = scores.from_results(accuracy, hard=False), scores.from_results(accuracy, hard=True)
    assert soft == {"full": 0.86, "distilled": 0.66, "random": 0.46}
    assert hard == {"full": 0.86, "distilled": 0.66, "random": 0.4, "distilled_hard": 0.66}
    assert scores.scores(hard, ["hlr", "ior"]) == pytest.approx({"hlr": 0.20, "ior": 0.26})
    del accuracy["random_soft"]
    assert "random" not in scores.from_results(accuracy, hard=False)


# --- the foreign judge ---------------------------------------------------------------------------------------------


@pytest.fixture
def ddranking(tmp_path, monkeypatch):
    """Makers of the package's metrics that train nothing: what their helpers give is handed in, the sums are theirs."""
    package = pytest.importorskip("ddranking", reason="needs ddranking, whose arithmetic these scores are held to")
    from ddranking.metrics import aug_robust, hard_label, soft_label

    for module in (aug_robust, hard_label, soft_label):
        monkeypatch.setattr(module, "save_results", lambda *_: None)

    def made(name, drawn):
        metric = object.__new__(getattr(package, name))
        settings = {"num_eval": 1, "ipc": 1, "num_classes": 2, "use_dist": False, "rank": 0, "save_path": None}
        for key, value in {**settings, "eval_full_data": True, "soft_label_mode": "M", "label_type": "hard"}.items():
            setattr(metric, key, value)
        metric._get_random_data_helper = lambda eval_iter: (None,) * drawn
        return metric

    return made


def in_turn(values):
    """A helper of the package: each call gives the next accuracy, and a step size."""
    turn = count()
    return lambda **_: (values[next(turn)], 0.01)


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_label_robust_scores_are_those_of_ddranking(ddranking, weight):
    soft = ddranking("LabelRobustScoreSoft", drawn=3)
    soft._compute_hard_label_metrics_helper = in_turn([GIVEN["distilled_hard"], GIVEN["full"]])
    soft._compute_soft_label_metrics_helper = in_turn([GIVEN["distilled"], GIVEN["random"]])
    found = soft.compute_metrics(image_tensor=(), lrs_lambda=weight)
    mine = scores.scores(GIVEN, weight=weight)
    assert mine["hlr"] == pytest.approx(found["hard_label_recovery_mean"])
    assert mine["ior"] == pytest.approx(found["improvement_over_random_mean"])
    assert mine["lrs"] == pytest.approx(found["label_robust_score_mean"])


def test_a_set_of_hard_labels_has_the_scores_of_ddranking(ddranking):
    """Whose "distilled" and "distilled_hard" are one."""
    given = {**GIVEN, "distilled": GIVEN["distilled_hard"]}
    hard = ddranking("LabelRobustScoreHard", drawn=3)
    hard._compute_hard_label_metrics_helper = in_turn([given["distilled"], given["full"], given["random"]])
    found = hard.compute_metrics(image_tensor=())
    assert scores.scores(given)["lrs"] == pytest.approx(found["label_robust_score_mean"])


@pytest.mark.parametrize("weight", [0.5, 0.8])
def test_augmentation_robust_scores_are_those_of_ddranking(ddranking, weight):
    metric = ddranking("AugmentationRobustScore", drawn=4)
    metric._compute_with_aug_metrics_helper = in_turn([GIVEN["distilled"], GIVEN["random"]])
    metric._compute_without_aug_metrics_helper = in_turn([GIVEN["distilled_plain"], GIVEN["random_plain"]])
    found = metric.compute_metrics(image_tensor=(), ars_lambda=weight)
    mine = scores.scores(GIVEN, weight=weight)
    assert mine["ior"] == pytest.approx(found["with_aug_scores_mean"])
    assert mine["ars"] == pytest.approx(found["augmentation_robust_score_mean"])
