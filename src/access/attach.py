import boto3
import cfnresponse


def handler(event, context):
    wanted = event["ResourceProperties"]
    table = wanted["Table"]
    dynamodb = boto3.client("dynamodb", region_name=table.split(":")[3])
    resource = event.get("PhysicalResourceId")
    try:
        if event["RequestType"] == "Delete":
            if (resource or "").startswith("arn:"):
                try:
                    dynamodb.delete_resource_policy(ResourceArn=resource)
                except (dynamodb.exceptions.ResourceNotFoundException, dynamodb.exceptions.PolicyNotFoundException):
                    pass
        else:
            wanted_on = table
            if wanted["On"] == "Stream":
                wanted_on = dynamodb.describe_table(TableName=table)["Table"]["LatestStreamArn"]
            more = {}
            if wanted_on != resource:
                # Nobody's policy is replaced but the one of this stack.
                more["ExpectedRevisionId"] = "NO_POLICY"
            dynamodb.put_resource_policy(ResourceArn=wanted_on, Policy=wanted["Policy"], **more)
            resource = wanted_on
        cfnresponse.send(event, context, cfnresponse.SUCCESS, {}, resource)
    except Exception as error:
        print(error)
        # What is named here is deleted when the stack is rolled back: never what this stack has not attached.
        cfnresponse.send(event, context, cfnresponse.FAILED, {}, resource or "none", reason=str(error))
