"""When to try a failed request again, and when to give up. Knows errors and the clock. Knows no HTTP."""

from __future__ import annotations

import math
import random
import time

from fgd.client.errors import ApiError, Unreachable, passing

LONGEST_PAUSE_S = 10.0
"""Between two tries; also bounds what a Retry-After may ask for."""


class Patience:
    """Bears so many failures in a row, or failures for so many seconds. After progress both begin from zero."""

    def __init__(self, backoff_s: float = 0.0, attempts: float = math.inf, for_s: float = math.inf) -> None:
        self._backoff_s = backoff_s
        self._attempts = attempts
        self._for_s = for_s
        self.progress()

    def progress(self) -> None:
        self._failures, self._since = 0, time.monotonic()

    def bear(self, error: ApiError | Unreachable) -> float:
        """The seconds to pause before the next try. Raises the error if another try cannot help, or is one too many.

        Twice as long each time, spread out so that many clients do not come back at once; never shorter than the
        service asks for.
        """
        self._failures += 1
        late = time.monotonic() - self._since > self._for_s
        if not passing(error) or late or self._failures >= self._attempts:
            raise error
        pause_s = self._backoff_s * 2.0 ** min(self._failures - 1, 5) * random.uniform(0.5, 1.0)
        asked_s = error.retry_after_s or 0.0 if isinstance(error, ApiError) else 0.0
        return min(max(pause_s, asked_s), LONGEST_PAUSE_S)
