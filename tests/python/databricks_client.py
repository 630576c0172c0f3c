"""What Databricks' own client does with a serving endpoint, from its creation to its end, with the client as it is.

    python databricks_client.py HOST TOKEN MODEL

MODEL is a registered model of which versions 1 and 2 serve iris. Fails where an answer is not what the client's own
types promise; prints what the test looks at.
"""

import json
import os
import sys

host, token, model = sys.argv[1:]
os.environ.update(DATABRICKS_HOST=host, DATABRICKS_TOKEN=token, DATABRICKS_CONFIG_FILE="/dev/null",
                  MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")

from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import BadRequest, DatabricksError, NotFound
from databricks.sdk.service import serving as s
from mlflow.deployments import get_deploy_client

endpoints = WorkspaceClient().serving_endpoints
row = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
seen = {}


def entity(name, version, **other):
    return s.ServedEntityInput(name=name, entity_name=model, entity_version=version, **other)


def split(**shares):
    routes = [s.Route(served_entity_name=name, served_model_name=name, traffic_percentage=share)
              for name, share in shares.items()]
    return s.TrafficConfig(routes=routes)


# create, and everything that goes with it
limit = s.AiGatewayRateLimit(calls=1000, renewal_period=s.AiGatewayRateLimitRenewalPeriod.MINUTE,
                             key=s.AiGatewayRateLimitKey.USER)
gateway = s.AiGatewayConfig(
    rate_limits=[limit],
    usage_tracking_config=s.AiGatewayUsageTrackingConfig(enabled=True),
    inference_table_config=s.AiGatewayInferenceTableConfig(enabled=True, catalog_name="main", schema_name="default"),
    fallback_config=s.FallbackConfig(enabled=False))
made = endpoints.create_and_wait(
    "pe",
    config=s.EndpointCoreConfigInput(
        name="pe",
        served_entities=[
            entity("blue", "1", workload_size="Small", scale_to_zero_enabled=True),
            entity("green", "2", min_provisioned_concurrency=4, max_provisioned_concurrency=8,
                   scale_to_zero_enabled=True, burst_scaling_enabled=True, environment_vars={"A": "1"})],
        traffic_config=split(blue=100, green=0)),
    ai_gateway=gateway, budget_policy_id="b-1", description="d", route_optimized=True,
    email_notifications=s.EmailNotifications(on_update_failure=["a@example.com"]),
    tags=[s.EndpointTag(key="team", value="a")],
    telemetry_config=s.TelemetryConfig(telemetry_profile_id="t"))
assert made.state.ready == s.EndpointStateReady.READY, made
assert made.state.config_update == s.EndpointStateConfigUpdate.NOT_UPDATING, made
assert made.ai_gateway.as_dict() == gateway.as_dict(), made.ai_gateway
assert (made.description, made.budget_policy_id, made.route_optimized) == ("d", "b-1", True), made
assert made.email_notifications.on_update_failure == ["a@example.com"]
assert made.telemetry_config.telemetry_profile_id == "t"
assert made.endpoint_url == f"{host}/serving-endpoints/pe/invocations" == made.data_plane_info.query_info.endpoint_url
blue, green = made.config.served_entities
assert (blue.workload_size, blue.min_provisioned_concurrency) == ("Small", None), blue
assert (green.workload_size, green.max_provisioned_concurrency, green.burst_scaling_enabled) == (None, 8, True), green
assert green.environment_vars == {"A": "1"}
assert [m.model_version for m in made.config.served_models] == ["1", "2"]
assert made.permission_level == s.ServingEndpointDetailedPermissionLevel.CAN_MANAGE
got = endpoints.get("pe")
assert got.id == made.id and got.config.config_version == 1
assert [e.name for e in endpoints.list()] == ["pe"]

# queries in every form
split_rows = s.DataframeSplitInput(columns=list(row), data=[list(row.values())])
answers = [
    endpoints.query("pe", dataframe_records=[row]),
    endpoints.query("pe", dataframe_split=split_rows),
    endpoints.query("pe", instances=[row], client_request_id="c", usage_context={"team": "a"}),
    endpoints.query("pe", inputs={name: [value] for name, value in row.items()})]
assert all(a.predictions[0]["label"] == 0 and a.served_model_name == "blue" for a in answers), answers
for chat in ({"messages": [s.ChatMessage(role=s.ChatMessageRole.USER, content="hello")], "max_tokens": 1},
             {"prompt": "hello", "n": 1, "stop": ["x"], "temperature": 0.5, "stream": False},
             {"input": "hello", "extra_params": {"a": "b"}}):
    try:
        endpoints.query("pe", **chat)
        raise AssertionError("a table model cannot chat")
    except BadRequest:
        pass

# another split
updated = endpoints.update_config_and_wait("pe", traffic_config=split(blue=0, green=100), served_entities=[
    entity("blue", "1", workload_size="Small", scale_to_zero_enabled=True),
    entity("green", "2", min_provisioned_concurrency=4, max_provisioned_concurrency=8,
           scale_to_zero_enabled=True, burst_scaling_enabled=True, environment_vars={"A": "1"})])
assert updated.config.config_version == 2 and updated.pending_config is None, updated
assert [(r.served_entity_name, r.served_model_name, r.traffic_percentage) for r in updated.config.traffic_config.routes] \
    == [("blue", "blue", 0), ("green", "green", 100)]
assert [e.creation_timestamp for e in updated.config.served_entities] == [blue.creation_timestamp, green.creation_timestamp]
seen["after_split"] = endpoints.query("pe", dataframe_records=[row]).served_model_name

# what needs no deploy
tags = endpoints.patch("pe", add_tags=[s.EndpointTag(key="stage", value="x"), s.EndpointTag(key="plain")], delete_tags=["team"])
seen["tags"] = [tag.as_dict() for tag in tags.tags]
gateway = s.AiGatewayConfig(rate_limits=[], usage_tracking_config=s.AiGatewayUsageTrackingConfig(enabled=False))
put = endpoints.put_ai_gateway("pe", rate_limits=[], usage_tracking_config=gateway.usage_tracking_config)
assert put.usage_tracking_config.enabled is False and put.inference_table_config is None, put
legacy = s.RateLimit(calls=900, renewal_period=s.RateLimitRenewalPeriod.MINUTE, key=s.RateLimitKey.ENDPOINT)
assert [limit.as_dict() for limit in endpoints.put("pe", rate_limits=[legacy]).rate_limits] == [legacy.as_dict()]
notified = endpoints.update_notifications("pe", email_notifications=s.EmailNotifications(on_update_success=["b@example.com"]))
assert (notified.name, notified.email_notifications.on_update_success) == ("pe", ["b@example.com"])
telemetry = endpoints.patch_telemetry_config("pe", telemetry_config=s.TelemetryConfig(
    enabled_telemetry_features=[s.TelemetryFeature.TELEMETRY_FEATURE_LOGS]))
assert telemetry.telemetry_config.enabled_telemetry_features == [s.TelemetryFeature.TELEMETRY_FEATURE_LOGS]
try:
    endpoints.put_ai_gateway("pe", guardrails=s.AiGatewayGuardrails(input=s.AiGatewayGuardrailParameters(safety=True)))
    seen["guardrail"] = None
except BadRequest as error:
    seen["guardrail"] = str(error)
assert endpoints.get("pe").config.config_version == 2

# who may do what with it
pid = endpoints.get("pe").id
levels = endpoints.get_permission_levels(pid).permission_levels
seen["levels"] = [level.permission_level.value for level in levels]


def shared(permissions):
    return {entry.group_name or entry.user_name: entry.all_permissions[0].permission_level.value
            for entry in permissions.access_control_list}


def to(group, level):
    return [s.ServingEndpointAccessControlRequest(group_name=group, permission_level=level)]


level = s.ServingEndpointPermissionLevel
seen["set"] = shared(endpoints.set_permissions(pid, access_control_list=to("users", level.CAN_VIEW)))
seen["updated"] = shared(endpoints.update_permissions(pid, access_control_list=to("users", level.CAN_QUERY)))
assert shared(endpoints.get_permissions(pid)) == seen["updated"]


# what can be read
assert "hello" not in endpoints.logs("pe", "green").logs
seen["build_log"] = endpoints.build_logs("pe", "green").logs
seen["metrics"] = endpoints.export_metrics("pe").contents.read().decode()
seen["openapi"] = json.loads(endpoints.get_open_api("pe").contents.read())

# provisioned throughput
pt = endpoints.create_provisioned_throughput_endpoint_and_wait("throughput", s.PtEndpointCoreConfig(
    served_entities=[s.PtServedModel(entity_name=model, entity_version="1", provisioned_model_units=50)]))
assert pt.config.served_entities[0].provisioned_model_units == 50, pt
pt = endpoints.update_provisioned_throughput_endpoint_config_and_wait("throughput", s.PtEndpointCoreConfig(
    served_entities=[s.PtServedModel(entity_name=model, entity_version="2", provisioned_model_units=100)]))
assert (pt.config.config_version, pt.config.served_entities[0].entity_version) == (2, "2"), pt
try:
    endpoints.create_provisioned_throughput_endpoint("unknown", s.PtEndpointCoreConfig(
        served_entities=[s.PtServedModel(entity_name="system.ai.llama", provisioned_model_units=50)]))
    seen["foundation"] = None
except DatabricksError as error:
    seen["foundation"] = str(error)
endpoints.delete("throughput")

# MLflow's client on the same endpoint
client = get_deploy_client("databricks")
client.create_endpoint(config={"name": "ml", "config": {"served_entities": [
    {"name": "only", "entity_name": model, "entity_version": "1"}]}, "tags": [{"key": "k", "value": "v"}]})
endpoints.wait_get_serving_endpoint_not_updating("ml")
assert client.get_endpoint("ml")["tags"] == [{"key": "k", "value": "v"}]
assert sorted(e["name"] for e in client.list_endpoints()) == ["ml", "pe"]
assert client.predict(endpoint="ml", inputs={"dataframe_records": [row]})["predictions"][0]["label"] == 0
client.update_endpoint_tags("ml", {"add_tags": [{"key": "l"}], "delete_tags": ["k"]})
client.update_endpoint_rate_limits("ml", {"rate_limits": [{"calls": 900, "renewal_period": "minute"}]})
client.update_endpoint_ai_gateway("ml", {"usage_tracking_config": {"enabled": True}})
client.update_endpoint_config("ml", {"served_entities": [{"name": "only", "entity_name": model, "entity_version": "2"}]})
endpoints.wait_get_serving_endpoint_not_updating("ml")
got = client.get_endpoint("ml")
assert got["config"]["served_entities"][0]["entity_version"] == "2" and got["tags"] == [{"key": "l"}], got
assert got["ai_gateway"] == {"usage_tracking_config": {"enabled": True}}, got
assert client.delete_endpoint("ml") == {}

# the end
endpoints.delete("pe")
try:
    endpoints.get("pe")
    raise AssertionError("it is still there")
except NotFound:
    pass
seen["left"] = [e.name for e in endpoints.list()]
print(json.dumps(seen))
