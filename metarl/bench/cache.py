"""Which programs of a case may come from the cache of compiled ones.

Those that are measured do not, unless asked for; those that only prepare a case do.
Imports JAX only when called.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from metarl.config import BenchConfig
from metarl.runtime import configure

OPTION = "jax_enable_compilation_cache"
HIT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class CacheUse:
    """How the measured programs of this process use the cache.

    Attributes:
      is_warm: whether they may be read from it.
      hits: how many were.
    """

    is_warm: bool
    hits: int = 0


def start_jax(config: BenchConfig) -> CacheUse:
    """Set JAX up; return the count of measured programs that the cache gave."""
    import jax

    use = CacheUse(is_warm=config.bench.warm_cache)
    jax.config.update(OPTION, use.is_warm)

    def listen(event: str, **_: object) -> None:
        if event == HIT and not _preparing:
            use.hits += 1

    jax.monitoring.register_event_listener(listen)
    configure(config.runtime)
    return use


_preparing: list[bool] = []


@contextlib.contextmanager
def preparing(config: BenchConfig) -> Iterator[None]:
    """Let the programs of the block come from the cache, if there may be one.

    Making agents takes longer to compile than many a case takes to be timed.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = getattr(jax.config, OPTION)
    jax.config.update(OPTION, config.runtime.compilation_cache)
    compilation_cache.reset_cache()  # JAX decides once whether to use it
    _preparing.append(True)
    try:
        yield
    finally:
        _preparing.pop()
        jax.config.update(OPTION, before)
        compilation_cache.reset_cache()
