"""template.yaml as CloudFormation deploys it: SAM's transform applied by AWS's own translator, conditions
evaluated, references replaced by the names that AWS would give.

A script that imports this runs in an environment with aws-sam-translator, such as .check/sam of ./check."""

import json
import logging
import os
import pathlib
import re
import sys

os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")  # the translator asks for a region
sys.dont_write_bytecode = True
logging.getLogger("samtranslator").setLevel(logging.ERROR)

# pylint: disable=wrong-import-position
from samtranslator.parser.parser import Parser  # noqa: E402
from samtranslator.translator.translator import Translator  # noqa: E402
from samtranslator.yaml_helper import yaml_parse  # noqa: E402

TEMPLATE = pathlib.Path(__file__).resolve().parent.parent / "template.yaml"
ACCOUNT, REGION = "123456789012", "us-east-1"
NOTHING = object()


class Stack:
    """The resources that these parameters create."""

    def __init__(self, template=TEMPLATE, **parameters):
        self.source = yaml_parse(template.read_text(encoding="utf-8"))
        self.parameters = {name: str(parameter.get("Default", ""))
                           for name, parameter in self.source["Parameters"].items()}
        unknown = parameters.keys() - self.parameters.keys()
        if unknown:
            raise SystemExit(f"{template.name} has no parameter {unknown}")
        self.parameters.update(parameters)
        source = json.loads(json.dumps(self.source))
        for resource in source["Resources"].values():  # as `sam package` does
            if resource["Type"] == "AWS::Serverless::Function":
                resource["Properties"]["CodeUri"] = "s3://bucket/function.zip"
        if "Transform" in source:
            source = Translator({}, Parser()).translate(source, dict(self.parameters))
        self.template = source
        self.conditions = self.template.get("Conditions", {})
        raw = {name: resource for name, resource in self.template["Resources"].items()
               if "Condition" not in resource or self.condition(resource["Condition"])}
        self.raw = raw
        self.resources = {}
        for name, resource in raw.items():
            properties = self.resolve(resource.get("Properties", {}))
            self.resources[name] = {**resource, "Properties": properties}

    def of_type(self, kind):
        """Name and properties of the resources of a type."""
        return {name: resource["Properties"] for name, resource in self.resources.items()
                if resource["Type"] == kind}

    def broken_rules(self):
        """The assertions of the template's rules that these parameters break."""
        broken = []
        for rule in self.template.get("Rules", {}).values():
            if "RuleCondition" not in rule or self.test(rule["RuleCondition"]):
                broken += [assertion["AssertDescription"] for assertion in rule["Assertions"]
                           if not self.test(assertion["Assert"])]
        return broken

    def condition(self, name):
        return self.test(self.conditions[name])

    def test(self, value):
        (function, argument), = value.items()
        if function == "Fn::Equals":
            left, right = (str(self.resolve(side)) for side in argument)
            return left == right
        if function == "Fn::Not":
            return not self.test(argument[0])
        if function == "Fn::And":
            return all(self.test(part) for part in argument)
        if function == "Fn::Or":
            return any(self.test(part) for part in argument)
        if function == "Condition":
            return self.condition(argument)
        raise SystemExit(f"scripts/expanded.py does not know the condition {function}")

    def resolve(self, value):
        """The value without intrinsic functions."""
        if isinstance(value, list):
            parts = [self.resolve(part) for part in value]
            return [part for part in parts if part is not NOTHING]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            (function, argument), = value.items()
            if function == "Ref":
                return self.reference(argument)
            if function == "Fn::GetAtt":
                name, attribute = argument if isinstance(argument, list) else argument.split(".", 1)
                return self.attribute(name, attribute)
            if function == "Fn::If":
                name, yes, no = argument
                return self.resolve(yes if self.condition(name) else no)
            if function == "Fn::Sub":
                return self.substitute(argument)
            if function == "Fn::Join":
                separator, parts = argument
                return separator.join(str(part) for part in self.resolve(parts))
            if function.startswith("Fn::"):
                raise SystemExit(f"scripts/expanded.py does not know {function}")
        resolved = {name: self.resolve(part) for name, part in value.items()}
        return {name: part for name, part in resolved.items() if part is not NOTHING}

    def reference(self, name):
        pseudo = {"AWS::NoValue": NOTHING, "AWS::AccountId": ACCOUNT, "AWS::Region": REGION,
                  "AWS::Partition": "aws", "AWS::URLSuffix": "amazonaws.com", "AWS::StackName": "stack"}
        if name in pseudo:
            return pseudo[name]
        if name in self.parameters:
            value = self.parameters[name]
            return int(value) if self.source["Parameters"][name]["Type"] == "Number" else value
        properties = self.raw[name].get("Properties", {})
        kind = self.raw[name]["Type"]
        own = {"AWS::CloudWatch::Alarm": "AlarmName", "AWS::Lambda::Function": "FunctionName",
               "AWS::DynamoDB::Table": "TableName", "AWS::Logs::LogGroup": "LogGroupName"}
        if kind in own:
            return self.resolve(properties[own[kind]])
        if kind == "AWS::SNS::Topic":
            return self.attribute(name, "TopicArn")
        if kind == "AWS::SQS::Queue":
            return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{self.resolve(properties['QueueName'])}"
        return name

    def attribute(self, name, attribute):
        properties = self.raw[name].get("Properties", {})
        if attribute == "QueueName":
            return self.resolve(properties["QueueName"])
        service, before, named, after = {
            "AWS::SQS::Queue": ("sqs", "", "QueueName", ""),
            "AWS::SNS::Topic": ("sns", "", "TopicName", ""),
            "AWS::CloudWatch::Alarm": ("cloudwatch", "alarm:", "AlarmName", ""),
            "AWS::Lambda::Function": ("lambda", "function:", "FunctionName", ""),
            "AWS::DynamoDB::Table": ("dynamodb", "table/", "TableName", ""),
            "AWS::Logs::LogGroup": ("logs", "log-group:", "LogGroupName", ":*"),
        }.get(self.raw[name]["Type"], (self.raw[name]["Type"], "", None, ""))
        own = self.resolve(properties[named]) if named else name
        arn = f"arn:aws:{service}:{REGION}:{ACCOUNT}:{before}{own}{after}"
        return arn if attribute in ("Arn", "TopicArn") else f"{arn}:{attribute}"

    def substitute(self, argument):
        text, values = argument if isinstance(argument, list) else (argument, {})

        def value(match):
            name = match.group(1)
            if name in values:
                return str(self.resolve(values[name]))
            if "." in name:
                return str(self.attribute(*name.split(".", 1)))
            return str(self.reference(name))

        return re.sub(r"\$\{([^!}]+)\}", value, text)
