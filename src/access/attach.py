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
            resource = table
            if wanted["On"] == "Stream":
                resource = dynamodb.describe_table(TableName=table)["Table"]["LatestStreamArn"]
            dynamodb.put_resource_policy(ResourceArn=resource, Policy=wanted["Policy"])
        cfnresponse.send(event, context, cfnresponse.SUCCESS, {}, resource)
    except Exception as error:
        print(error)
        cfnresponse.send(event, context, cfnresponse.FAILED, {}, resource or "none", reason=str(error))
