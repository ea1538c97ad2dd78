"""Groups of checkpoints: which there are, and what a measure says of them."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from landscape import compare
from landscape.compare import group_verdicts, groups_by_name, paired_by_seed
from landscape.report import text, write_report
from landscape.results import Measures
from tests.test_compare import QUICK, _checkpoint, _other, _problem

NAMES = ["A-1", "A-2", "A-3", "B-1", "B-2", "B-3"]
GROUPS = {"A": NAMES[:3], "B": NAMES[3:]}


def _measures(rows, flatter="lower", names=NAMES):
    values = np.array(rows, float)
    count = values.shape[1]
    return Measures(
        names=[f"m{i}" for i in range(len(values))],
        flatter=[flatter] * len(values),
        checkpoints=names,
        values=values,
        stderr=np.zeros(values.shape),
        differences=values - values[:, :1],
        differences_stderr=np.zeros(values.shape),
        covariance=np.zeros((len(values), count, count)),
        invariant=[False] * len(values),
    )


LOW, HIGH = [1.0, 1.1, 0.9], [5.0, 5.1, 4.9]


@pytest.mark.parametrize(
    ("flatter", "row", "flattest"),
    [
        ("lower", LOW + HIGH, "A"),
        ("lower", HIGH + LOW, "B"),
        ("higher", LOW + HIGH, "B"),
        ("higher", HIGH + LOW, "A"),
    ],
)
def test_the_flatter_group(flatter, row, flattest):
    (verdict,) = group_verdicts(_measures([row], flatter), GROUPS)
    assert (verdict.says, verdict.flattest) == ("flatter", flattest)
    assert verdict.means == pytest.approx((np.mean(row[:3]), np.mean(row[3:])))
    assert verdict.runs is None


def test_equal_within_a_margin_or_not_to_be_told():
    row = [1.0, 1.01, 0.99, 1.0, 1.01, 0.995]
    (verdict,) = group_verdicts(_measures([row]), GROUPS, margin=0.1)
    assert (verdict.says, verdict.flattest, verdict.margin) == ("equal", "", pytest.approx(0.1))
    (verdict,) = group_verdicts(_measures([row]), GROUPS, margin=0.01)
    assert verdict.says == "cannot tell"
    assert verdict.runs > 3  # more than there are


def test_measures_without_a_flatter_way_have_no_verdict():
    assert group_verdicts(_measures([LOW + HIGH], ""), GROUPS) == []


def test_p_values_are_adjusted_for_the_number_of_measures():
    rng = np.random.default_rng(0)
    rows = [LOW + HIGH, *rng.normal(10, 1, (9, 6))]
    alone = group_verdicts(_measures(rows[:1]), GROUPS)[0]
    among = group_verdicts(_measures(rows), GROUPS)[0]
    assert alone.p == alone.difference.p
    assert among.p == pytest.approx(10 * alone.p)


def test_a_single_run_has_no_spread():
    (verdict,) = group_verdicts(_measures([LOW + HIGH]), {"A": NAMES[:1], "B": NAMES[1:]})
    assert (verdict.says, verdict.flattest, verdict.difference) == ("one run", "", None)


def test_a_value_that_is_not_reliable_leaves_no_verdict():
    """Left out it would bias the mean, since it is the sharp minima where estimates fail."""
    row = [*LOW, 5.0, np.nan, np.inf]
    reliable, verdict = group_verdicts(_measures([LOW + HIGH, row]), GROUPS)
    assert (verdict.says, verdict.unreliable) == ("not reliable", ("B-2", "B-3"))
    assert np.isnan([verdict.p, verdict.equivalence_p]).all()
    assert reliable.p == reliable.difference.p  # adjusted for the tests that were made


def test_a_value_of_unknown_error_leaves_no_verdict():
    """Such as an eigenvalue that has not converged: it is off by no spread between runs."""
    measures = _measures([LOW + HIGH])
    stderr = measures.stderr.copy()
    stderr[0, 4] = np.nan
    (verdict,) = group_verdicts(dataclasses.replace(measures, stderr=stderr), GROUPS)
    assert (verdict.says, verdict.unreliable, verdict.flattest) == ("not reliable", ("B-2",), "")


def test_equal_measures_are_told_with_the_p_of_equality():
    found = group_verdicts(_measures([[1.0, 1.01, 0.99, 1.0, 1.01, 0.995]]), GROUPS)
    sentence = text.group_answer(found)
    assert "1 calls them equal. Most clearly equal, within 0.1: m0, " in sentence
    assert sentence.endswith(f"(adjusted p {text.p_value(found[0].equivalence_p)}).")
    assert found[0].equivalence_p < 0.001


def test_verdicts_are_of_checkpoints_that_the_measures_know():
    for groups, message in (
        ({"A": NAMES[:3], "B": ["nope"]}, "groups has nope, and the measures are of A-1"),
        ({"A": NAMES[:3], "B": NAMES[2:]}, "groups has A-3 more than once"),
        ({"A": NAMES}, "groups has A only"),
    ):
        with pytest.raises(ValueError, match=message):
            group_verdicts(_measures([LOW + HIGH]), groups)


def test_groups_of_unequal_size_in_any_order():
    groups = {"B": ["B-1", "B-3"], "A": ["A-3", "A-1", "A-2"]}
    (verdict,) = group_verdicts(_measures([[*LOW, 5.0, 99.0, 4.9]]), groups)
    assert verdict.means == pytest.approx((4.95, 1.0))
    assert verdict.difference.value == pytest.approx(-3.95)
    with pytest.raises(ValueError, match="unequal size"):
        group_verdicts(_measures([LOW + HIGH]), groups, paired=True)


def test_each_group_is_held_against_the_first():
    groups = {"A": NAMES[:2], "B": NAMES[2:4], "C": NAMES[4:]}
    found = group_verdicts(_measures([LOW + HIGH, HIGH + LOW]), groups)
    assert [(v.measure, v.first, v.other) for v in found] == [
        ("m0", "A", "B"),
        ("m0", "A", "C"),
        ("m1", "A", "B"),
        ("m1", "A", "C"),
    ]


@pytest.mark.parametrize(("margin", "level"), [(0.0, 0.05), (-1.0, 0.05), (float("nan"), 0.05), (0.1, 0.0), (0.1, 1.0)])
def test_margins_and_levels_out_of_range(margin, level):
    with pytest.raises(ValueError, match="give a positive margin, and a level between 0 and 1"):
        group_verdicts(_measures([LOW + HIGH]), GROUPS, margin=margin, level=level)


def test_groups_by_name():
    names = ["SGD-seed0", "SGD-seed1", "Entropy-SGD-seed0", "Entropy-SGD-seed1"]
    assert groups_by_name(names) == {"SGD": names[:2], "Entropy-SGD": names[2:]}
    assert groups_by_name([*names, "SAM"]) == {"SGD": names[:2], "Entropy-SGD": names[2:], "SAM": ["SAM"]}
    assert groups_by_name(names[:2]) == {}
    assert groups_by_name(["A-seed-1", "A-seed-2", "B"]) == {"A": ["A-seed-1", "A-seed-2"], "B": ["B"]}
    assert groups_by_name(["SGD-seed0", "Entropy-SGD-seed0"]) == {}  # one run each
    assert groups_by_name(["SGD", "Entropy-SGD"]) == {}


def test_runs_of_the_same_seeds_are_pairs():
    groups = {"A": ["a0", "a1"], "B": ["b1", "b0"]}
    seeds = {"a0": {"seed": 0}, "a1": {"seed": 1}, "b1": {"seed": 1}, "b0": {"seed": 0}}
    assert paired_by_seed(groups, seeds) == {"A": ["a0", "a1"], "B": ["b0", "b1"]}
    assert paired_by_seed(groups, {**seeds, "b1": {"seed": 2}}) is None
    assert paired_by_seed(groups, {**seeds, "b1": {}}) is None
    assert paired_by_seed({"A": ["a0"], "B": ["b1", "b0"]}, seeds) is None
    twice = {"a0": {"seed": 0}, "a1": {"seed": 0}, "b0": {"seed": 0}, "b1": {"seed": 0}}
    assert paired_by_seed(groups, twice) is None


# --- of networks ---------------------------------------------------------------------------------------------------


def _runs(name, scale, seeds, gradients=100):
    """Networks of different initial weights, which are far from any minimum, and the first layer of one scale."""
    found = []
    for seed in seeds:
        checkpoint = _other(f"{name}-seed{seed}", seed)
        tensors = {key: tensor * scale for key, tensor in checkpoint.tensors.items()}
        metadata = {"seed": seed, "gradients": gradients}
        found.append(dataclasses.replace(checkpoint, tensors=tensors, metadata=metadata))
    return found


@pytest.fixture(scope="module")
def comparison():
    groups = {"A": _runs("A", 1.0, (1, 2, 3)), "B & <C>": _runs("B", 1.1, (1, 2, 3), gradients=200)}
    return compare(problem=_problem(), groups=groups, analyses=["eigenpairs", "spectral_density"], settings=QUICK)


def test_the_seeds_are_the_groups_of_a_comparison(comparison):
    assert comparison.groups == {"A": [f"A-seed{k}" for k in (1, 2, 3)], "B & <C>": [f"B-seed{k}" for k in (1, 2, 3)]}
    found = compare([*_runs("A", 1.0, (1, 2)), *_runs("B", 1.1, (1,))], _problem(), analyses=[], settings=QUICK)
    assert found.groups == {"A": ["A-seed1", "A-seed2"], "B": ["B-seed1"]}
    assert compare([_checkpoint("A")], _problem(), analyses=[], settings=QUICK).groups == {}


def test_the_report_answers_by_group_first(comparison, tmp_path):
    page = write_report(comparison, tmp_path).read_text()
    assert (tmp_path / "figures" / "groups.png").is_file()
    head = page[page.index("Which is flatter?") : page.index("Every run")]
    assert "Of 2 measures over 3 pairs of runs of A and B &amp; &lt;C&gt;" in head
    assert "The budgets differ (A 100, B &amp; &lt;C&gt; 200 gradients)" in head
    assert "pairs of runs of the same seed" in head
    assert "A-seed" not in head  # seeds are folded
    for v in group_verdicts(comparison.measures, comparison.groups, paired=True):
        assert v.measure in head
        assert text.group_verdict(v) in head
        assert text.interval(v.difference) in head
    assert page.index("Which is flatter?") < page.index("What was compared") < page.index("How this was made")


def test_a_report_of_single_checkpoints_says_that_it_is_of_these_only(tmp_path):
    found = compare([_checkpoint("A"), _checkpoint("B", 2.0)], _problem(), analyses=["eigenpairs"], settings=QUICK)
    page = write_report(found, tmp_path).read_text()
    assert "This is of these checkpoints only" in page
    assert re.search("Of 1 measure, 1 calls [AB] the flatter", page)
    assert not (tmp_path / "figures" / "groups.png").exists()


def test_groups_of_one_run_each_are_compared_as_checkpoints(tmp_path):
    groups = {"A": _runs("A", 1.0, (1,)), "B": _runs("B", 1.1, (2,))}
    found = compare(problem=_problem(), groups=groups, analyses=["eigenpairs"], settings=QUICK)
    page = write_report(found, tmp_path).read_text()
    assert "This is of these checkpoints only" in page
    assert "is flatter</b> (A-seed1 " in page


def test_groups_stand_in_their_order_whatever_their_case(tmp_path):
    groups = {name: _runs(name, scale, (1, 2)) for name, scale in (("z", 1.0), ("b", 1.1), ("B", 1.2), ("a", 0.9))}
    found = compare(problem=_problem(), groups=groups, analyses=["eigenpairs"], settings=QUICK)
    page = write_report(found, tmp_path).read_text()
    assert re.findall("<th>(.) . z</th>", page) == ["b", "B", "a"]
    bare = write_report(compare(problem=_problem(), groups=groups, analyses=[], settings=QUICK), tmp_path).read_text()
    assert "None of the analyses measures flatness" in bare
    assert "of these checkpoints only" not in bare


def test_unreliable_values_are_not_called_single_runs():
    (verdict,) = group_verdicts(_measures([[*LOW, 5.0, np.nan, 4.9]]), GROUPS)
    assert text.group_answer([verdict]).endswith("No measure is reliable for every run: B-2.")


def test_budgets_differ_between_groups_not_within():
    groups = {"A": ["a", "b"], "B": ["c", "d"]}
    spent = {"a": {"gradients": 1}, "b": {"gradients": 2}, "c": {"gradients": 1}, "d": {"gradients": 2}}
    assert text.budgets(spent, groups) == ""
    assert "A 1 or 2, B 1 gradients" in text.budgets({**spent, "d": {}}, groups)


def test_three_groups_of_which_one_has_a_single_run(tmp_path):
    groups = {"A": _runs("A", 1.0, (1, 2)), "B": _runs("B", 1.2, (1, 2, 3)), "C": _runs("C", 0.8, (4,))}
    found = compare(problem=_problem(), groups=groups, analyses=["eigenpairs"], settings=QUICK)
    page = write_report(found, tmp_path).read_text()
    assert "Of 1 measure over 2 and 3 runs of A and B, 1 calls A the flatter. Clearest: largest eigenvalue, " in page
    assert "Of 1 measure over 2 and 1 runs of A and C, none tells which is flatter. A group of one run has no" in page
    assert "with Welch's degrees of freedom" in page


def test_diverged_runs_are_named_and_left_out_only_if_asked(tmp_path):
    runs = [*_runs("A", 1.0, (1, 2, 3)), *_runs("B", 1.1, (1, 2, 3))]
    for i in (1, 4):
        runs[i] = dataclasses.replace(runs[i], tensors={k: t * torch.nan for k, t in runs[i].tensors.items()})
    with pytest.raises(ValueError, match=r"2 of 6 checkpoints .* 'A-seed2' \(nan\), 'B-seed2' \(nan\).*drop_diverged"):
        compare(runs, _problem(), analyses=["eigenpairs"], settings=QUICK)
    found = compare(runs, _problem(), analyses=["eigenpairs"], settings=QUICK, drop_diverged=True)
    assert found.diverged == ("A-seed2", "B-seed2")
    assert found.groups == {"A": ["A-seed1", "A-seed3"], "B": ["B-seed1", "B-seed3"]}
    page = write_report(found, tmp_path).read_text()
    assert "2 of 6 checkpoints were left out" in page
    assert "The groups are of those that did not diverge." in page
    alone = compare([runs[0], runs[4]], _problem(), analyses=["eigenpairs"], settings=QUICK, drop_diverged=True)
    page = write_report(alone, tmp_path).read_text()
    assert "1 of 2 checkpoints was left out" in page
    assert "The groups are" not in page
    with pytest.raises(ValueError, match="every run of B has diverged"):
        compare([*runs[:3], runs[4]], _problem(), settings=QUICK, drop_diverged=True)


def test_groups_that_are_none():
    a, b = _runs("A", 1.0, (1, 2)), _runs("B", 1.1, (1, 2))
    for groups, message in (
        ({"A": a, "B": [*b, a[0]]}, "groups has A-seed1 more than once"),
        ({"A": a, "B": []}, "groups has no checkpoint in B"),
        ({"A": a}, "groups has A only"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(problem=_problem(), groups=groups)
    with pytest.raises(ValueError, match="checkpoints and groups were both given"):
        compare(a, _problem(), groups={"A": a, "B": b})
    with pytest.raises(TypeError, match="problem is missing"):
        compare(a)


def test_sentences_of_what_groups_say():
    rows = [LOW + HIGH, HIGH + LOW, [1.0, 1.01, 0.99, 1.0, 1.01, 0.995], [1.0, 2.0, 3.0, 1.5, 2.5, 3.1]]
    found = group_verdicts(_measures(rows), GROUPS)
    assert [v.says for v in found] == ["flatter", "flatter", "equal", "cannot tell"]
    sentence = text.group_answer(found)
    assert sentence.startswith(
        "Of 4 measures over 3 and 3 runs of A and B, 1 calls B the flatter, 1 calls A the flatter, 1 calls them equal, "
        "1 cannot tell. Clearest: m0, 5 for B and 1 for A, a difference of 4 with a 95 % interval from "
    )
    assert text.group_verdict(found[2]) == "equal within 0.1"
    assert text.group_verdict(found[3]) == f"cannot tell; about {found[3].runs} seeds of each would"
    (single,) = group_verdicts(_measures([LOW + HIGH]), {"A": NAMES[:1], "B": NAMES[1:]})
    assert "one run has no spread" in text.group_answer([single])
    assert text.with_spread(found[0], 0) == "1.00 ± 0.10"
    # Student's with four degrees of freedom: 4 -+ 2.776 (2 x 0.01 / 3)^(1/2)
    assert text.interval(found[0].difference) == "3.77 to 4.23"
    assert text.with_spread(single, 0) == "1"
    assert [text.p_value(p) for p in (0.04567, 1.0, 0.0004)] == ["0.046", "1", "< 0.001"]
