"""/v1/tickets: an address for one download, for a browser that cannot send the key."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.core import tickets
from api.deps import ProjectDep, ServiceDep
from api.errors import documented
from api.http.bodies import StrictRoute
from api.http.middleware import TICKET
from api.schemas import AskTicket, TicketView

router = APIRouter(prefix="/v1/tickets", tags=["artifacts"], route_class=StrictRoute)


@router.post("", status_code=201, responses=documented(400, 413, 415, 422))
def make_ticket(body: AskTicket, service: ServiceDep, project: ProjectDep, response: Response) -> TicketView:
    """An address that needs no key, for one GET within 60 seconds. It is meant for a browser that downloads a file."""
    with service.transaction() as s:
        ticket = tickets.issue(s, project, body.path)
    response.headers["Cache-Control"] = "no-store"
    mark = "&" if "?" in body.path else "?"
    return TicketView(url=f"{body.path}{mark}{TICKET}={ticket.token}", expires_at=ticket.expires_at)
