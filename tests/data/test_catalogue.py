import subprocess
import sys

import pytest

from kinfolk.data.catalogue import entry, names, prepare
from kinfolk.errors import ConfigError, DataError


def test_each_name_has_an_entry_of_that_name():
    assert names() == ("digits", "mnist", "stacked-mnist", "ring", "grid", "patches", "folder")
    for name in names():
        assert entry(name).name == name
        assert entry(name).summary
        assert entry(name).licence


@pytest.mark.parametrize("name", ["digits", "ring", "grid", "patches"])
def test_the_preview_is_what_is_prepared_but_for_the_deviation(tmp_path, name):
    prepared = prepare(name, tmp_path / name)
    assert prepared.spec.model_copy(update={"data_std": 1.0}) == entry(name).spec
    assert prepared.record.name == name


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"called 'digit'. Did you mean 'digits'.* Known: digits, mnist"):
        entry("digit")


def test_a_path_is_asked_for_refused_or_checked_as_the_entry_wants(tmp_path):
    with pytest.raises(DataError, match="folder is made from your own files"):
        prepare("folder", tmp_path / "out")
    with pytest.raises(DataError, match="digits takes no path"):
        prepare("digits", tmp_path / "out", source=tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        prepare("folder", tmp_path / "out", source=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["My Cats", "../cats", "cats\n", "-cats"])
def test_a_name_that_could_not_be_a_folder_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a data set"):
        prepare("digits", tmp_path / "out", name=name)


def test_a_destination_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(DataError, match=r"photo.png.*would be lost"):
        prepare("digits", tmp_path)
    assert (tmp_path / "photo.png").exists()


def test_a_destination_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        prepare("digits", tmp_path / "file" / "digits")


def test_an_entry_without_options_takes_none(tmp_path):
    with pytest.raises(ConfigError, match="Options of digits: size is not a key"):
        prepare("digits", tmp_path / "out", options={"size": 9})


def test_looking_at_the_catalogue_loads_neither_scikit_learn_nor_ray():
    program = "import sys, kinfolk.data.catalogue; print({'sklearn', 'ray', 'mlflow', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
