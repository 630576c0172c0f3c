"""Asks for /health with one version of TLS at a time: `tls_versions.py HOST PORT CA_FILE`. To stdout goes, for each
version, the one that was agreed on with the status of the answer, or the reason of the refusal."""

import json
import socket
import ssl
import sys
import warnings

host, port, ca = sys.argv[1:]
# Old versions are what this is about.
warnings.simplefilter("ignore", DeprecationWarning)


def ask(version):
    context = ssl.create_default_context(cafile=ca)
    # Otherwise OpenSSL refuses the old ones itself, and the server is not asked.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    try:
        with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
            tls.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            return [tls.version(), tls.recv(12).decode()]
    except ssl.SSLError as error:
        return error.reason


names = ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"]
print(json.dumps({name: ask(ssl.TLSVersion[name]) for name in names}))
