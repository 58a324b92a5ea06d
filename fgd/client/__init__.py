"""A client of the service: `Client` asks, waits and downloads. Knows no torch and nothing of the service's code."""

from fgd.client.client import ApiError, Client, ClientError, Unreachable

__all__ = ["ApiError", "Client", "ClientError", "Unreachable"]
