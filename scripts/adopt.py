#!/usr/bin/env python3
"""Takes the tables and log groups that `sam delete` left into a new stack, by CloudFormation's import. Then
`sam deploy` makes the rest. It needs boto3 and aws-sam-translator, which come with the SAM CLI:

    .check/sam/bin/python scripts/adopt.py                                        the stack tallyhook
    .check/sam/bin/python scripts/adopt.py --stack-name tallyhook-live --prefix tallyhook-live
"""

import json
import os
import sys

import boto3
from botocore.exceptions import ClientError

os.environ["AWS_DEFAULT_REGION"] = boto3.session.Session().region_name or sys.exit("set AWS_DEFAULT_REGION")

import shared  # noqa: E402  pylint: disable=wrong-import-position
from expanded import Stack  # noqa: E402  pylint: disable=wrong-import-position

IDENTIFIER = {"AWS::DynamoDB::Table": "TableName", "AWS::Logs::LogGroup": "LogGroupName"}


def exists(kind, name):
    if kind == "AWS::DynamoDB::Table":
        try:
            boto3.client("dynamodb").describe_table(TableName=name)
            return True
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceNotFoundException":
                raise
            return False
    groups = boto3.client("logs").describe_log_groups(logGroupNamePrefix=name)["logGroups"]
    return any(group["logGroupName"] == name for group in groups)


def main():
    parser = shared.parser(__doc__)
    parser.add_argument("--stack-name", default="tallyhook")
    parser.add_argument("--prefix", default="tallyhook", help="the parameter Prefix")
    options = parser.parse_args()
    resources = {}
    for name, resource in Stack(Prefix=options.prefix).resources.items():
        kind, properties = resource["Type"], resource["Properties"]
        if kind in IDENTIFIER and exists(kind, properties[IDENTIFIER[kind]]):
            resources[name] = {"Type": kind, "DeletionPolicy": "Retain", "Properties": properties}
            print(f"    {name}: {properties[IDENTIFIER[kind]]}")
    if not resources:
        sys.exit("no table or log group of this prefix exists: sam deploy needs no help")
    cloudformation = boto3.client("cloudformation")
    change = {"StackName": options.stack_name, "ChangeSetName": "adopt"}
    cloudformation.create_change_set(
        **change, ChangeSetType="IMPORT", TemplateBody=json.dumps({"Resources": resources}),
        ResourcesToImport=[{"ResourceType": resource["Type"], "LogicalResourceId": name,
                            "ResourceIdentifier": {
                                IDENTIFIER[resource["Type"]]:
                                    resource["Properties"][IDENTIFIER[resource["Type"]]]}}
                           for name, resource in resources.items()])
    cloudformation.get_waiter("change_set_create_complete").wait(**change)
    cloudformation.execute_change_set(**change)
    cloudformation.get_waiter("stack_import_complete").wait(StackName=options.stack_name)
    print(f"the stack {options.stack_name} has {len(resources)} resources; now deploy")


if __name__ == "__main__":
    main()
