"""What an administrator does with the Databricks SDK as it is: users, nested groups, a service principal that logs in by
OAuth, tokens, a workspace of its own.

    python identities.py HOST TOKEN

Prints what the client made of the answers.
"""

import json
import os
import sys

for name in [name for name in os.environ if name.startswith("DATABRICKS_")]:
    del os.environ[name]
os.environ["DATABRICKS_CONFIG_FILE"] = "/dev/null"

from databricks.sdk import AccountClient, WorkspaceClient
from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied, ResourceConflict, Unauthenticated
from databricks.sdk.common.types.fieldmask import FieldMask
from databricks.sdk.service import iam, provisioning, settings

host, token = sys.argv[1:]
admin = WorkspaceClient(host=host, token=token)
seen = {"me": admin.current_user.me().user_name, "workspace_id": admin.get_workspace_id()}


def refusal(act):
    """The SDK's class for what the server answered."""
    try:
        act()
    except (BadRequest, NotFound, PermissionDenied, ResourceConflict, Unauthenticated, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def mask(field):
    return FieldMask([field])


def replace(path, value):
    return iam.Patch(op=iam.PatchOp.REPLACE, path=path, value=value)


patch_schemas = [iam.PatchSchema.URN_IETF_PARAMS_SCIM_API_MESSAGES_2_0_PATCH_OP]

# Users.
ada = admin.users.create(user_name="ada@example.com", display_name="Ada Lovelace", emails=[
    iam.ComplexValue(value="ada@example.com", primary=True)])
bob = admin.users.create(user_name="bob@example.com", name=iam.Name(given_name="Bob", family_name="Builder"))
seen["bob"] = bob.display_name
seen["found"] = [user.user_name for user in admin.users.list(filter='userName eq "ada@example.com"')]
seen["all_users"] = sorted(user.user_name for user in admin.users.list(attributes="id,userName", count=2))
seen["filtered"] = sorted(user.user_name for user in admin.users.list(
    filter='(userName sw "ADA" or displayName ew "builder") and active eq true and not (externalId pr)'))
seen["bad_filter"] = refusal(lambda: list(admin.users.list(filter="userName like x")))
admin.users.update(ada.id, user_name="ada@example.com", display_name="Ada King", active=True)
admin.users.patch(bob.id, operations=[replace("displayName", "Bobby")], schemas=patch_schemas)
seen["renamed"] = [admin.users.get(ada.id).display_name, admin.users_v2.get(bob.id).display_name]
seen["twice"] = refusal(lambda: admin.users.create(user_name="ada@example.com"))

# Groups in groups.
inner = admin.groups.create(display_name="inner", members=[iam.ComplexValue(value=ada.id)])
outer = admin.groups.create(display_name="outer")
admin.groups.patch(outer.id, schemas=patch_schemas, operations=[
    iam.Patch(op=iam.PatchOp.ADD, value={"members": [{"value": inner.id}, {"value": bob.id}]})])
seen["outer"] = sorted(member.display for member in admin.groups.get(outer.id).members)
seen["ada_groups"] = sorted((group.display, group.type) for group in admin.users.get(ada.id).groups)
seen["circle"] = refusal(lambda: admin.groups.patch(inner.id, operations=[
    iam.Patch(op=iam.PatchOp.ADD, path="members", value=[{"value": outer.id}])]))
admin.groups.patch(outer.id, operations=[iam.Patch(op=iam.PatchOp.REMOVE, path=f'members[value eq "{bob.id}"]')])
seen["outer_without_bob"] = [member.display for member in admin.groups.get(outer.id).members]
admin.groups.update(outer.id, display_name="renamed", members=[iam.ComplexValue(value=bob.id)])
seen["replaced"] = [(group.display_name, [member.display for member in group.members or []])
                    for group in admin.groups.list(filter='displayName eq "renamed"')]

# A token for Ada: what she may and may not, and its end.
ada_token = admin.api_client.do("POST", "/api/2.0/token-management/on-behalf-of/tokens",
                                body={"user_name": "ada@example.com", "comment": "hers"})
as_ada = WorkspaceClient(host=host, token=ada_token["token_value"])
seen["ada"] = as_ada.current_user.me().display_name
seen["ada_reads"] = "bob@example.com" in [user.user_name for user in as_ada.users.list()]
seen["ada_creates"] = refusal(lambda: as_ada.users.create(user_name="eve@example.com"))
own = as_ada.tokens.create(comment="mine", lifetime_seconds=3600)
seen["own"] = sorted(info.comment for info in as_ada.tokens.list())
seen["managed"] = sorted(info.comment for info in admin.token_management.list(created_by_username="ada@example.com"))
as_ada.tokens.update(own.token_info.token_id, settings.PublicTokenInfo(comment="by the SDK"), mask("comment"))
seen["commented_by_sdk"] = admin.token_management.get(own.token_info.token_id).token_info.comment
admin.token_management.update_token_management(
    own.token_info.token_id, settings.TokenInfo(comment="by the administrator"), mask("comment"))
seen["commented_by_admin"] = [info.comment for info in as_ada.tokens.list() if info.comment != "hers"]
seen["bad_mask"] = refusal(lambda: as_ada.tokens.update(
    own.token_info.token_id, settings.PublicTokenInfo(), mask("expiry_time")))
seen["not_hers"] = refusal(lambda: as_ada.tokens.update(
    list(admin.tokens.list())[0].token_id, settings.PublicTokenInfo(comment="x"), mask("comment")))
with_own = WorkspaceClient(host=host, token=own.token_value)
seen["with_own"] = with_own.current_user.me().user_name
as_ada.tokens.delete(own.token_info.token_id)
seen["revoked"] = refusal(lambda: with_own.current_user.me())
admin.users.patch(ada.id, operations=[replace("active", "false")], schemas=patch_schemas)
seen["inactive"] = refusal(lambda: as_ada.current_user.me())
admin.users.delete(ada.id)
seen["deleted"] = refusal(lambda: admin.users.get(ada.id))
seen["members_left"] = admin.groups.get(inner.id).members

# A service principal that logs in by OAuth.
robot = admin.service_principals.create(display_name="robot", groups=[iam.ComplexValue(value=inner.id)])
secret = admin.service_principal_secrets_proxy.create(robot.id)
as_robot = WorkspaceClient(host=host, client_id=robot.application_id, client_secret=secret.secret)
seen["robot"] = [as_robot.config.auth_type, as_robot.current_user.me().user_name == robot.application_id,
                 sorted(group.display for group in as_robot.current_user.me().groups)]
seen["robot_token"] = as_robot.tokens.create(comment="from OAuth").token_info.comment
seen["wrong_secret"] = refusal(lambda: WorkspaceClient(
    host=host, client_id=robot.application_id, client_secret="tss_wrong").current_user.me())
obo = admin.token_management.create_obo_token(application_id=robot.application_id, lifetime_seconds=60)
seen["obo"] = WorkspaceClient(host=host, token=obo.token_value).current_user.me().display_name
seen["secrets"] = [info.id == secret.id for info in admin.service_principal_secrets_proxy.list(robot.id)]
for _ in range(4):
    admin.service_principal_secrets_proxy.create(robot.id)
seen["sixth"] = refusal(lambda: admin.service_principal_secrets_proxy.create(robot.id))
admin.service_principal_secrets_proxy.delete(robot.id, secret.id)
seen["without_secret"] = refusal(lambda: as_robot.current_user.me())
admin.service_principals.delete(robot.id)
seen["robots"] = [one.display_name for one in admin.service_principals.list()]

# A workspace with the account's client.
account = AccountClient(host=host, account_id="any", token=token)
made = account.workspaces.create(workspace_name="made", aws_region="us-west-2").result()
seen["made"] = [made.workspace_name, made.workspace_status.value]
seen["workspaces"] = sorted(workspace.workspace_name for workspace in account.workspaces.list())
renamed = provisioning.Workspace(workspace_name="renamed")
seen["updated"] = account.workspaces.update(made.workspace_id, renamed).result().workspace_name
account.workspaces.delete(made.workspace_id)
seen["gone"] = refusal(lambda: account.workspaces.get(made.workspace_id))

# Another administrator of the server.
role = [iam.ComplexValue(value="account_admin")]
eve = admin.users.create(user_name="eve@example.com")
eve_token = admin.api_client.do("POST", "/api/2.0/token-management/on-behalf-of/tokens",
                                body={"user_name": "eve@example.com"})
seen["not_here"] = refusal(lambda: admin.users.patch(eve.id, operations=[
    iam.Patch(op=iam.PatchOp.ADD, path="roles", value=[{"value": "account_admin"}])]))
account.users.patch(eve.id, schemas=patch_schemas, operations=[
    iam.Patch(op=iam.PatchOp.ADD, path="roles", value=[{"value": "account_admin"}])])
seen["old_token"] = refusal(lambda: WorkspaceClient(host=host, token=eve_token["token_value"]).current_user.me())
seen["server_admins"] = sorted(user.user_name for user in account.users.list() if user.roles)
seen["role"] = account.users_v2.get(eve.id).roles[0].value
eve_token = admin.api_client.do("POST", "/api/2.0/token-management/on-behalf-of/tokens",
                                body={"user_name": "eve@example.com"})
as_eve = AccountClient(host=host, account_id="any", token=eve_token["token_value"])
seen["eve_sees"] = [workspace.workspace_name for workspace in as_eve.workspaces.list()]
me = next(user for user in as_eve.users.list(filter='userName eq "admin"'))
as_eve.users.patch(me.id, operations=[
    iam.Patch(op=iam.PatchOp.REMOVE, path='roles[value eq "account_admin"]')])
seen["demoted"] = refusal(lambda: list(account.users.list()))
seen["last"] = refusal(lambda: as_eve.users.patch(eve.id, operations=[iam.Patch(op=iam.PatchOp.REMOVE, path="roles")]))
seen["last_off"] = refusal(lambda: as_eve.users.patch(eve.id, operations=[replace("active", False)]))
seen["last_deleted"] = refusal(lambda: as_eve.users.delete(eve.id))
made = as_eve.service_principals.create(display_name="operator", roles=role)
seen["operator"] = as_eve.service_principals.get(made.id).roles[0].value
as_eve.users.delete(eve.id)

print(json.dumps(seen))
