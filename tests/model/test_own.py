"""Objects of the user's own, named in the run file."""

import pytest

from plait.errors import RunFileError
from plait.model.own import check_call, load_object


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    return tmp_path


def test_finds_installed_modules_and_the_working_directory(here):
    (here / "own_thing_a.py").write_text("class Thing:\n    pass\n")
    assert load_object("json:dumps", "x") is __import__("json").dumps
    assert load_object("own_thing_a:Thing", "x").__name__ == "Thing"


@pytest.mark.parametrize("reference", ["nothing", ":Name", "module:", ""])
def test_a_reference_without_module_or_name_is_refused(reference):
    with pytest.raises(RunFileError, match=r'^watch\.x = .*"package\.module:Name"'):
        load_object(reference, "watch.x")


def test_each_reason_is_told(here):
    (here / "own_thing_b.py").write_text("def first(): pass\nimport os\n")
    (here / "own_thing_c.py").write_text("import module_that_is_not_there\n")
    (here / "own_thing_d.py").write_text("1 / 0\n")
    with pytest.raises(RunFileError, match=r"there is no module own_thing_z.*in "):
        load_object("own_thing_z:X", "model.family")
    with pytest.raises(RunFileError, match=r"own_thing_b has no Second; it has: first$"):
        load_object("own_thing_b:Second", "model.family")
    with pytest.raises(RunFileError, match=r"importing own_thing_c fails.*module_that_is_not_there"):
        load_object("own_thing_c:X", "model.family")
    with pytest.raises(RunFileError, match=r"importing own_thing_d fails: ZeroDivisionError"):
        load_object("own_thing_d:X", "model.family")


def test_a_call_that_does_not_fit_is_told_with_the_signature():
    check_call(lambda a, b=1: None, "m:f", "train.loss", 1)
    with pytest.raises(RunFileError, match=r"signature is \(a\).*too many"):
        check_call(lambda a: None, "m:f", "train.loss", 1, 2)
    with pytest.raises(RunFileError, match="no class and no function, but int"):
        check_call(3, "m:f", "train.loss")
