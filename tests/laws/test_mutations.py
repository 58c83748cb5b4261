"""The laws must be able to fail: three mistakes made on purpose each break one."""

from __future__ import annotations

import mutations
import pytest


@pytest.mark.slow
def test_every_mutation_breaks_a_law(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutations.main() == 0, capsys.readouterr().out


def test_every_mutation_still_finds_its_text() -> None:
    for mutation in mutations.MUTATIONS:
        text = (mutations.ROOT / "src" / "ddpm" / mutation.file).read_text(encoding="utf-8")
        assert text.count(mutation.right) == 1, (
            f"{mutation.name}: src/ddpm/{mutation.file} changed; bring tests/laws/mutations.py up to date"
        )
        assert all((mutations.ROOT / mutations.LAWS / law).is_file() for law in mutation.laws)
