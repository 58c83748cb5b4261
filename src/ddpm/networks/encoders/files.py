"""The files of an encoder of `transformers`: a folder as `save_pretrained` writes it, of weights without code, told apart by its hash."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ddpm.errors import ConfigError, MissingLibraryError
from ddpm.networks.encoders.settings import EncoderSettings

ENDINGS = (".safetensors", ".json", ".model", ".txt")  # weights, settings, and what tokenizers are made of


def library(flag: str = "text") -> ModuleType:
    """`transformers`; MissingLibraryError where it is not installed."""
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingLibraryError(f"{flag}: this encoder needs the library transformers: pip install 'ddpm[text]'") from error
    return transformers


def check_folder(folder: Path, flag: str) -> None:
    """ConfigError, under the flag's name, for what is no folder of an encoder with weights."""
    if not (folder / "config.json").is_file():
        words = ", or words" if flag == "text" else ""
        raise ConfigError(f"{flag}: {folder} is no folder of an encoder: no config.json; give one as save_pretrained writes it{words}")
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(f"{flag}: {folder} holds no .safetensors; weights that are pickles are not loaded: save them anew")


def described(folder: Path, flag: str) -> Any:
    """What config.json of a folder says of its network; ConfigError, under the flag's name, for what is no such folder."""
    transformers = library(flag)
    check_folder(folder, flag)
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library has an error for every way a folder can be wrong
        raise ConfigError(f"{flag}: {folder}/config.json cannot be read ({first_line(error)})") from error


def hashed(folder: Path) -> str:
    """SHA-256 over names and contents of the files that decide what tokens are; computed once while they do not change."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in ENDINGS and not path.name.startswith("."))
    return _hashed(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _hashed(files: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, size, _ in files:
        path = Path(name)
        total.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def check_files(about: EncoderSettings, folder: Path) -> None:
    """ConfigError where the folder does not hold the encoder that a model was trained with."""
    if not folder.is_dir():
        raise ConfigError(
            f"{about.flag}: the encoder this model was trained with, {about.model}, is not at {folder}; put the folder back, or name it "
            "with --text-encoder of ddpm sample"
        )
    check_folder(folder, about.flag)
    if (found := hashed(folder)) != about.sha256:
        raise ConfigError(
            f"{about.flag}: {folder} holds another encoder (SHA-256 {found[:12]}) than the model was trained with ({about.model}, "
            f"{about.sha256[:12]}); put that one back, or name it with --text-encoder of ddpm sample"
        )


def first_line(error: Exception) -> str:
    """What a library said, in a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
