"""The example with more to it: what a guest can do wrong, on demand (`{"do": …}` as JSON)."""

import logging
import random
import secrets
import socket

import endpoint
import tessera_guest as tessera

requests_seen = 0
print("printed while the component was built")


@tessera.endpoint
class Tested(endpoint.Iris):
    def init(self, package):
        super().init(package)
        if package.setting("refuse"):
            raise tessera.InvalidInput("init refused, as the setting asks")
        print("printed by init")
        self.frozen = package.setting("frozen")

    def predict(self, request):
        global requests_seen
        requests_seen += 1
        if request.media_type != "application/json" or not isinstance(asked := request.json(), dict):
            return super().predict(request)
        print("printed by a request")
        match asked["do"]:
            case "count":
                return {"requests_seen": requests_seen, "frozen": self.frozen}
            case "raise":
                logging.warning("about to fail")
                return {"never": {}[asked["key"]]}
            case "loop":
                while True:
                    pass
            case "grow":
                hoard = []
                while True:
                    hoard.append(bytearray(1 << 20))
            case "recurse":
                return recurse(0)
            case "socket":
                try:
                    socket.socket().connect(("127.0.0.1", asked["port"]))
                except OSError as error:
                    return {"denied": type(error).__name__}
                return {"denied": None}
            case "random":
                return {"drawn": random.random(), "secret": secrets.token_hex(16)}
            case "graph":
                return list(tessera.Graph("other").run())
            case "stream":
                return tessera.Response.stream((f"line {line}\n" for line in range(3)), "text/plain")
            case "info":
                return {"path": request.path, "endpoint": request.endpoint, "header": request.header("X-Asked")}


def recurse(depth):
    return recurse(depth + 1) + 1
