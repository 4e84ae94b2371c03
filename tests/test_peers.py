"""The peers of the benchmarks answer what they are asked, and the races between them are kept."""

import importlib.util
import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("threadpoolctl")

from benchmarks.machine import Limits
from benchmarks.peers import __main__ as command
from benchmarks.peers import plan
from benchmarks.peers.contender import Contender, Question
from benchmarks.peers.library import NUMPY
from benchmarks.peers.queries import BUILDS, PRODUCTS, QUERIES
from benchmarks.peers.race import Pace, Race
from benchmarks.problems import Problem
from mfac_linalg.testing import Oracle, tolerance

EPS = float(np.finfo(np.float32).eps)
PROBLEM = Problem(6, 60, kappa=30.0)
INSTALLED = [c for c in plan.CONTENDERS if all(importlib.util.find_spec(library) for library in c.needs)]
ASKED = [(contender, query) for contender in INSTALLED for query in contender.answers]
BRIEF = Pace(rounds=1, run_in=0.0, counted=0.0)


@pytest.fixture(scope="module")
def oracle():
    return Oracle(PROBLEM.gradients, PROBLEM.damping)


def expected(oracle, query):
    """The exact answer to a question about `PROBLEM`, and the size of an error of eps in it."""
    if query in ("diagonal", "elements"):
        i, j = PROBLEM.pairs if query == "elements" else (np.arange(PROBLEM.dim),) * 2
        return oracle.inverse[i, j], EPS / PROBLEM.damping
    rows = {"step": PROBLEM.gradients[0], **dict.fromkeys(BUILDS, PROBLEM.stored_row)}
    exact = oracle.solve(rows[query] if query in rows else Question(PROBLEM, query).v)
    return exact, EPS * float(np.max(np.linalg.norm(np.asarray(exact, float), axis=0)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("contender", "query"), ASKED, ids=lambda value: getattr(value, "name", value))
def test_an_answer_is_that_of_the_dense_inverse(contender, query, oracle):
    built = contender.build(PROBLEM)()
    answer = np.asarray(contender.answers[query](built, Question(PROBLEM, query, residual=EPS))())
    exact, unit = expected(oracle, query)
    assert np.max(np.abs(answer - exact)) <= tolerance(unit, oracle.kappa)


def test_every_query_has_a_peer_and_the_library():
    for query in QUERIES:
        names = {contender.name for contender in plan.CONTENDERS if query in contender.answers}
        assert any(name.startswith(NUMPY) for name in names), query
        assert any(not name.startswith(NUMPY) for name in names), query


def test_the_errors_that_a_race_finds_are_those_of_the_answers():
    """A contender that answers v/λ is found out, by as much as it is wrong."""

    class Wrong:
        def matvec(self):
            return PROBLEM.stored_row / np.float32(PROBLEM.damping)

    wrong = Contender("v/λ", lambda _: Wrong, {"row": lambda state, _: state.matvec})
    library, *_ = plan.CONTENDERS
    race = Race(PROBLEM, [library, wrong], BRIEF)
    ours, theirs = race.run("row")["contenders"]
    residual = np.linalg.norm(PROBLEM.gradients @ PROBLEM.stored_row @ PROBLEM.gradients) / PROBLEM.num_gradients
    assert ours["R"] <= 30
    assert theirs["R"] == pytest.approx(residual / (race.reference.norm * np.linalg.norm(PROBLEM.stored_row)) / EPS)


def test_what_does_not_answer_gives_its_reason():
    def fail(_):
        msg = "no convergence\nat all"
        raise np.linalg.LinAlgError(msg)

    def answer(_, question):
        return lambda: np.full(question.problem.dim, np.nan)

    def forget(_):
        return object

    library, *_ = plan.CONTENDERS
    contenders = [
        library,
        Contender("absent", forget, {"random": answer}, needs=("no_such_library",)),
        Contender("unable", forget, {}, cannot={"random": "has no products"}),
        Contender("too large", forget, {"random": answer}, refuse=lambda *_: "would take an hour"),
        Contender("heavy", forget, {"random": answer}, copies=1e12),
        Contender("broken", lambda _: lambda: fail(None), {"random": answer}),
        Contender("not finite", forget, {"random": answer}),
        Contender("elsewhere", forget, {"row": answer}),
    ]
    first, *others = Race(PROBLEM, contenders, BRIEF).run("random")["contenders"]
    assert first["seconds"] > 0
    assert {figure["name"]: figure["reason"] for figure in others} == {
        "absent": "needs no_such_library",
        "unable": "has no products",
        "too large": "would take an hour",
        "heavy": "the memory is too small for its 1440000.0 GB beside the others",
        "broken": "raises LinAlgError: no convergence",
        "not finite": "its answer is not finite",
    }


def test_a_large_problem_is_left_to_those_who_can():
    slow = Limits(sgemm=1e11, project=1.0, combine=1.0, read=1e9, fresh=1e9)
    question = Question(Problem(1024, 1_000_000), "block")
    refused = {c.name for c in plan.CONTENDERS if c.refuse(question, slow)}
    assert {"dense Cholesky", "recursion, NumPy", "SciPy cg"} <= refused
    assert not any(name.startswith((NUMPY, "five lines")) for name in refused)


def test_a_run_that_the_time_cuts_off_is_gone_on_with(tmp_path, capsys, monkeypatch):
    output = tmp_path / "peers.json"
    monkeypatch.setattr(plan, "QUICK", BRIEF)
    options = ["--quick", "--gradients", "8", "--kappas", "100", "--only", "five lines", "--output", str(output)]
    assert command.main([*options, "--minutes", "0"]) == 1
    assert not output.exists()
    assert command.main([*options, "--queries", "random", "diagonal"]) == 0
    before = json.loads(output.read_text("utf-8"))["cases"]
    assert [case["query"] for case in before] == ["random", "diagonal"]
    assert command.main([*options, "--queries", *PRODUCTS]) == 0
    held = json.loads(output.read_text("utf-8"))
    assert held["cases"][:2] == before
    assert {case["query"] for case in held["cases"]} == {*PRODUCTS, "diagonal"}
    assert [case["run"] for case in held["cases"]] == [0, 0, 1, 1, 1]
    assert command.main([*options, "--queries", "random", "--again"]) == 0
    again = json.loads(output.read_text("utf-8"))["cases"]
    assert len(again) == len(held["cases"])
    assert again[-1]["query"] == "random"
    assert again[-1]["run"] == 2
    assert "(8, 100) κ = 100, random: two passes" in capsys.readouterr().out
