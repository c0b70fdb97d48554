import numpy as np
import pytest
from builders import make_block, make_shape, make_trace

from moeprof.errors import MoeprofError
from moeprof.policies import parse_policy, read_accesses, replay, user_policy
from moeprof.policies.user_policy import UserPolicy

SHAPE = make_shape(moe_layers=(0, 1), num_experts=8, top_k=2, expert_bytes=10)
SIZES = np.full((2, 8), 10, np.int64)


@pytest.fixture
def accesses(tmp_path):
    block = make_block(SHAPE, [0] * 30 + [1] * 30, decode=25)
    return read_accesses(make_trace(tmp_path / "t", {"a": block}, SHAPE))


def replayed(tmp_path, accesses, source, **options):
    file = tmp_path / "mine.py"
    file.write_text(source, encoding="utf-8")
    return replay(accesses, user_policy(f"{file}:Mine"), 80, SIZES, **options)


def example():
    """The policy that the protocol's docstring shows."""
    lines = (UserPolicy.__doc__ or "").splitlines()
    first = next(place for place, line in enumerate(lines) if "class Oldest" in line)
    last = next(place for place, line in enumerate(lines) if "candidates[np.argmin" in line)
    text = "\n".join(line[8:] for line in lines[first : last + 1])
    return "import numpy as np\n" + text.replace("Oldest", "Mine")


@pytest.mark.parametrize("restart", [False, True])
def test_the_policy_of_the_docstring_does_what_lru_does(tmp_path, accesses, restart):
    own = replayed(tmp_path, accesses, example(), restart=restart)
    lru = replay(accesses, parse_policy("lru"), 80, SIZES, restart=restart)
    assert lru.hits.any()
    assert own.is_hit.tolist() == lru.is_hit.tolist()
    assert own.bytes_read.tolist() == lru.bytes_read.tolist()
    assert own.policy.name == f"{tmp_path / 'mine.py'}:Mine"


def test_what_is_not_admitted_stays_outside(tmp_path, accesses):
    source = example().replace("return True", "return cell != 3")
    found = replayed(tmp_path, accesses, source)
    assert not found.is_hit[accesses.cells == 3].any()
    assert found.is_hit.any()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("self.lookups += 1", "self.lookups += None", "touch raised TypeError in line 8"),
        ("return True", "raise KeyError(cell)", "admit raised KeyError in line 12: "),
        ("self.lookups = 0", "self.lookups = 1 / 0", "__init__ raised ZeroDivisionError in line 5"),
        ("return candidates[np", "return -1 or candidates[np", "victim returned -1, which is no"),
        ("return candidates[np", "return None or [np", "victim returned .*, which is no candidate"),
        ("return True", "return np.ones(3)", r"admit returned array\(.*, which is no truth value"),
        ("return True", "raise SystemExit(0)", "admit raised SystemExit in line 12: 0"),
        ("import numpy as np", "raise SystemExit(0)", "raised SystemExit in line 1: 0"),
        ("return candidates[np", "candidates[:] = 0; return 0 * [np", "victim raised ValueError"),
        ("self.lookups = 0", "facts.cell_bytes[:] = 1", "__init__ raised ValueError in line 5"),
        ("def admit", "def admits", "has no method admit"),
        ("class Mine", "class Other", "has no class Mine"),
        ("import numpy as np", "import nonsense", "raised ModuleNotFoundError in line 1"),
        ("class Mine:", "class Mine", "line 2: expected ':'"),
    ],
)
def test_a_failure_of_a_users_policy_is_a_sentence_with_its_line(
    tmp_path, accesses, old, new, message
):
    source = example()
    assert old in source
    with pytest.raises(MoeprofError, match=message) as failed:
        replayed(tmp_path, accesses, source.replace(old, new))
    assert failed.value.hint


def test_an_interrupt_is_not_taken_for_a_failure_of_the_policy(tmp_path, accesses):
    with pytest.raises(KeyboardInterrupt):
        replayed(tmp_path, accesses, example().replace("return True", "raise KeyboardInterrupt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("mine.py", "is not FILE.py:CLASS"), ("mine:Mine", "is not"), ("no.py:Mine", "no such file")],
)
def test_a_file_that_cannot_be_meant_is_refused(text, message):
    with pytest.raises(MoeprofError, match=message):
        user_policy(text)
