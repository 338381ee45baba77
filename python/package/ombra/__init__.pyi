import os
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Union

import numpy as np

__version__: str

Path = Union[str, "os.PathLike[str]"]

class OmbraError(Exception):
    code: str
    kind: str
    message: str
    place: Optional[str]
    notes: List[str]

def compile(
    model: Path,
    *,
    output: Path,
    progress: Optional[Callable[[str, float], Any]] = ...,
    **options: Any,
) -> Dict[str, Any]: ...
def inspect(folder: Path, **sizes: int) -> Dict[str, Any]: ...

class Answer(Iterator[str]):
    text: str
    tokens: List[int]
    finish_reason: Optional[str]
    def __iter__(self) -> "Answer": ...
    def __next__(self) -> str: ...
    def result(self) -> str: ...
    def cancel(self) -> None: ...

class Client:
    report: Optional[Dict[str, Any]]
    def __init__(
        self,
        folder: Path,
        *,
        config: Optional[Path] = ...,
        network: str = ...,
        threads: Optional[int] = ...,
        allow_public: Iterable[str] = ...,
    ) -> None: ...
    def generate(
        self,
        prompt: Union[str, Sequence[int]],
        *,
        max_tokens: Optional[int] = ...,
        stop: Union[str, Iterable[str]] = ...,
        stop_tokens: Iterable[int] = ...,
        temperature: float = ...,
        top_k: Optional[int] = ...,
        top_p: Optional[float] = ...,
        presence_penalty: float = ...,
        frequency_penalty: float = ...,
        progress: Optional[Callable[[Dict[str, Any]], Any]] = ...,
    ) -> Answer: ...
    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: Optional[int] = ...,
        stop: Union[str, Iterable[str]] = ...,
        stop_tokens: Iterable[int] = ...,
        temperature: float = ...,
        top_k: Optional[int] = ...,
        top_p: Optional[float] = ...,
        presence_penalty: float = ...,
        frequency_penalty: float = ...,
        progress: Optional[Callable[[Dict[str, Any]], Any]] = ...,
    ) -> Answer: ...
    def infer(self, inputs: Mapping[str, Any]) -> Dict[str, np.ndarray]: ...
    def close(self) -> None: ...
    def __enter__(self) -> "Client": ...
    def __exit__(self, *exception: Any) -> None: ...
