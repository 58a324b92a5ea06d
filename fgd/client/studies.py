"""The client's methods for studies: grids of jobs that are compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fgd.client import follow
from fgd.client.answers import Leaderboard, Study, StudyOutline
from fgd.client.transport import Transport, read, route


class Studies:
    """Part of `Client`."""

    _service: Transport

    def submit_study(self, body: Mapping[str, Any], idempotency_key: str | None = None) -> Study:
        """Queue a job for each arm, student and seed. Sending the same body with the same key again returns the same
        study."""
        return read(Study, self._service.post("/v1/studies", json.dumps(dict(body)), idempotency_key))

    def outline_study(self, body: Mapping[str, Any]) -> StudyOutline:
        """What a study would be; nothing is made. `plan` with the `spec` of a run says what one of its jobs costs."""
        return read(StudyOutline, self._service.post("/v1/studies?dry_run=true", json.dumps(dict(body))))

    def study(self, study_id: str) -> Study:
        return read(Study, self._service.get(route("studies", study_id)))

    def studies(self, most: int = 50, *, name: str | None = None, states: Sequence[str] = ()) -> list[Study]:
        """Those that match, newest first, at most `most` of them; name and states as in `jobs`."""
        return self._service.pages(Study, "/v1/studies", most, name=name, state=list(states) or None)

    def leaderboard(self, study_id: str, split: Literal["val", "test"] = "val") -> Leaderboard:
        """The arms side by side. While it has runs `pending`, intervals over images are still being worked out."""
        return read(Leaderboard, self._service.get(route("studies", study_id, "leaderboard"), split=split))

    def leaderboard_csv(self, study_id: str, split: Literal["val", "test"] = "val") -> str:
        """The same as a spreadsheet, without the single runs."""
        path, headers = route("studies", study_id, "leaderboard"), {"Accept": "text/csv"}
        return self._service.request("GET", path, params={"split": split}, headers=headers).text

    def extend_study(
        self,
        study_id: str,
        *,
        seeds: Sequence[int] = (),
        arms: Sequence[Mapping[str, Any]] = (),
        idempotency_key: str | None = None,
    ) -> Study:
        """Add seeds, or arms; what the study has already is left as it is."""
        body = json.dumps({"seeds": list(seeds), "arms": [dict(arm) for arm in arms]})
        return read(Study, self._service.post(route("studies", study_id, "extend"), body, idempotency_key))

    def retry_study(self, study_id: str) -> Study:
        """Make a new job in place of each that failed, was cancelled or was deleted. Raises ApiError if there is
        none."""
        return self._ask_study(study_id, "retry")

    def pause_study(self, study_id: str) -> Study:
        """Pause all jobs that have not ended. Pausing twice is not an error."""
        return self._ask_study(study_id, "pause")

    def resume_study(self, study_id: str) -> Study:
        """Queue all paused jobs again. Resuming twice is not an error."""
        return self._ask_study(study_id, "resume")

    def cancel_study(self, study_id: str, mode: Literal["graceful", "now"] = "graceful") -> Study:
        """Cancel all jobs that have not ended. Cancelling twice is not an error."""
        return self._ask_study(study_id, "cancel", {"mode": mode})

    def change_study(self, study_id: str, *, name: str) -> Study:
        """Give it another name, in whatever state it is."""
        return read(Study, self._service.patch(route("studies", study_id), {"name": name}))

    def delete_study(self, study_id: str, *, jobs: bool = False) -> None:
        """Raises ApiError while any of its jobs has not ended. jobs: delete these too; else they stay, as ordinary
        jobs."""
        self._service.request("DELETE", route("studies", study_id), params={"jobs": jobs})

    def wait_study(
        self,
        study_id: str,
        on_study: Callable[[Study | None], None] | None = None,
        *,
        poll_s: float = 1.0,
        patience_s: float = 600.0,
    ) -> Study:
        """Wait until all jobs of a study have ended."""
        return follow.wait_for(self._service, Study, route("studies", study_id), on_study, poll_s, patience_s)

    def _ask_study(self, study_id: str, verb: str, body: Mapping[str, Any] | None = None) -> Study:
        return read(Study, self._service.post(route("studies", study_id, verb), json.dumps(body or {})))
