# One member's account: what the replicator needs of one table, by resource policies or by a role. For more,
# `shardwalker policy --format terraform --side ACCOUNT` writes the whole file from the config.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
  }
}

variable "table" {
  description = "The table's name, in the provider's account and Region"
  type        = string
}

variable "part" {
  description = "Whether routes lead from the table (source), to it (peer), or it is in a group (group)"
  type        = string
  validation {
    condition     = contains(["source", "peer", "group"], var.part)
    error_message = "The part is source, peer or group."
  }
}

variable "replicator" {
  description = "The ARN of the replicator's role, which must exist"
  type        = string
}

variable "external_id" {
  description = "With one, a role is made, which is assumed with it; without, the resource policies let the replicator in"
  type        = string
  default     = null
}

variable "role_name" {
  description = "The role's name"
  type        = string
  default     = "shardwalker"
}

variable "read_whole" {
  description = "Whether the table is read whole, too, for backfill, verify and repair"
  type        = bool
  default     = false
}

data "aws_dynamodb_table" "this" {
  name = var.table
}

locals {
  by_role = var.external_id != null
  reads   = var.part != "peer"
  writes = {
    source = []
    peer   = ["dynamodb:PutItem", "dynamodb:DeleteItem"]
    group  = ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem"]
  }
  whole     = ["dynamodb:GetItem", "dynamodb:Scan"]
  on_table  = distinct(concat(["dynamodb:DescribeTable"], local.writes[var.part], var.read_whole ? local.whole : []))
  on_stream = ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"]
}

resource "aws_dynamodb_resource_policy" "table" {
  count        = local.by_role ? 0 : 1
  resource_arn = data.aws_dynamodb_table.this.arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "ShardwalkerTable"
      Effect    = "Allow"
      Principal = { AWS = var.replicator }
      Action    = local.on_table
      Resource  = data.aws_dynamodb_table.this.arn
    }]
  })
}

# A stream that is turned off and on is another one, without a policy: apply again then.
resource "aws_dynamodb_resource_policy" "stream" {
  count        = !local.by_role && local.reads ? 1 : 0
  resource_arn = data.aws_dynamodb_table.this.stream_arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "ShardwalkerStream"
      Effect    = "Allow"
      Principal = { AWS = var.replicator }
      Action    = local.on_stream
      Resource  = data.aws_dynamodb_table.this.stream_arn
    }]
  })
}

resource "aws_iam_role" "this" {
  count = local.by_role ? 1 : 0
  name  = var.role_name
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { AWS = var.replicator }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "sts:ExternalId" = var.external_id } }
    }]
  })
}

resource "aws_iam_role_policy" "this" {
  count = local.by_role ? 1 : 0
  name  = "shardwalker"
  role  = aws_iam_role.this[0].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{ Effect = "Allow", Action = local.on_table, Resource = data.aws_dynamodb_table.this.arn }],
      [for actions in [local.on_stream] : {
        Effect = "Allow", Action = actions, Resource = "${data.aws_dynamodb_table.this.arn}/stream/*"
      } if local.reads],
    )
  })
}

output "role_arn" {
  description = "The config's assume_role.role of this member; null by resource policies"
  value       = one(aws_iam_role.this[*].arn)
}
