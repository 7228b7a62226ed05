import pytest

from kinfolk.errors import ConfigError
from kinfolk.tracking.reference import Reference, parse_alias, parse_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vae", Reference("vae")),
        ("digits-vae_1.2", Reference("digits-vae_1.2")),
        ("vae@champion", Reference("vae", alias="champion")),
        ("vae@to-try_2", Reference("vae", alias="to-try_2")),
        ("vae/1", Reference("vae", number=1)),
        ("vae/120", Reference("vae", number=120)),
        ("a" * 100, Reference("a" * 100)),
    ],
)
def test_a_reference_is_read_and_written_back(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "@", "/", "vae@", "vae/", "@champion", "/1", "vae/0", "vae/-1", "vae/01", "vae/1.0", "vae/latest",
        "vae/1/2", "vae@a@b", "vae@champion/1", "vae/1@champion", "../vae", "..", ".", ".vae", "-vae", "vae/../../etc",
        "vae/..", "vae@../x", "/etc/passwd", "vae\n", "vae/1\n", "vae@champion\n", "va e", "vae\x00", "vae%2e%2e",
        "vae\\x", "vae:1", "models:/vae/1", "vae'", 'vae"', "vae;--", "vaë", "vae/١", "vae@latest", "vae@LATEST",
        "vae@v1", "vae@1", "a" * 101, "vae/9999999999", "runs:/x", "http://169.254.169.254/", "$(x)", "\u202evae",
    ],
)  # fmt: skip
def test_anything_else_is_refused_and_shown_escaped(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_reference(text)
    assert ascii(text[:120]) in str(caught.value) or "/" in text or "@" in text
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("alias", ["", "v12", "Latest", "1st", "a b", "a" * 51])
def test_an_alias_mlflow_would_misread_is_refused(alias: str) -> None:
    with pytest.raises(ConfigError):
        parse_alias(alias)
