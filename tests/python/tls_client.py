"""Asks a server through the Databricks SDK, unmodified: `tls_client.py HOST TOKEN`. Whom to trust comes in
REQUESTS_CA_BUNDLE. To stdout goes what the client made of the answers."""

import json
import sys

from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config

host, token = sys.argv[1:]
workspace = WorkspaceClient(config=Config(host=host, token=token, retry_timeout_seconds=1))
print(json.dumps({
    "host": workspace.config.host,
    "user": workspace.current_user.me().user_name,
    "endpoints": [endpoint.name for endpoint in workspace.serving_endpoints.list()],
}))
