# Shardwalker in the replicator's account: the state table, the role, workers on ECS Fargate that scale with the lag.
# The same as deploy/cloudformation/replicator.yaml.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
  }
}

data "aws_caller_identity" "this" {}

data "aws_partition" "this" {}

data "aws_region" "this" {}

resource "aws_dynamodb_table" "state" {
  name                        = var.state_table
  billing_mode                = "PAY_PER_REQUEST"
  deletion_protection_enabled = true
  hash_key                    = "pk"
  range_key                   = "sk"

  attribute {
    name = "pk"
    type = "S"
  }

  attribute {
    name = "sk"
    type = "S"
  }

  ttl {
    attribute_name = "expires"
    enabled        = true
  }

  point_in_time_recovery {
    enabled = true
  }

  server_side_encryption {
    enabled = true
  }
}

resource "aws_iam_role" "this" {
  name = var.role_name
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceAccount" = data.aws_caller_identity.this.account_id } }
    }]
  })
}

resource "aws_iam_role_policy" "own" {
  name = "own"
  role = aws_iam_role.this.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect = "Allow"
        Action = [
          "dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:Query",
          "dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem",
        ]
        Resource = aws_dynamodb_table.state.arn
      },
      {
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
        Resource = "${aws_cloudwatch_log_group.metrics.arn}:*"
      },
    ]
  })
}

resource "aws_iam_role_policy_attachment" "members" {
  for_each   = toset(var.policies)
  role       = aws_iam_role.this.name
  policy_arn = each.value
}

resource "aws_iam_role" "execution" {
  name_prefix = "shardwalker-execution-"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy_attachment" "execution" {
  role       = aws_iam_role.execution.name
  policy_arn = "arn:${data.aws_partition.this.partition}:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
}

resource "aws_iam_role_policy" "config" {
  name = "config"
  role = aws_iam_role.execution.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = "ssm:GetParameters"
      Resource = aws_ssm_parameter.config.arn
    }]
  })
}

resource "aws_ssm_parameter" "config" {
  name  = "/shardwalker/config"
  type  = "String"
  tier  = "Intelligent-Tiering"
  value = var.config
}

resource "aws_cloudwatch_log_group" "logs" {
  name_prefix       = "/shardwalker/logs-"
  retention_in_days = 30
}

resource "aws_cloudwatch_log_group" "metrics" {
  name_prefix       = "/shardwalker/metrics-"
  retention_in_days = 7
}

resource "aws_ecs_cluster" "this" {
  name = "shardwalker"

  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

resource "aws_security_group" "this" {
  name_prefix = "shardwalker-"
  description = "Workers of Shardwalker, which nobody calls"
  vpc_id      = var.vpc

  egress {
    description = "Endpoints of AWS"
    protocol    = "tcp"
    from_port   = 443
    to_port     = 443
    cidr_blocks = ["0.0.0.0/0"]
  }
}

locals {
  logs = {
    for name in ["worker", "collector"] : name => {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.logs.name
        awslogs-region        = data.aws_region.this.region
        awslogs-stream-prefix = name
      }
    }
  }
  collector = {
    receivers = {
      prometheus = {
        config = {
          scrape_configs = [{
            job_name        = "shardwalker"
            scrape_interval = "30s"
            static_configs  = [{ targets = ["127.0.0.1:9464"] }]
            metric_relabel_configs = [{
              source_labels = ["__name__"]
              regex         = "shardwalker_lag_seconds.*"
              action        = "keep"
            }]
          }]
        }
      }
    }
    exporters = {
      awsemf = {
        namespace               = "Shardwalker"
        log_group_name          = aws_cloudwatch_log_group.metrics.name
        dimension_rollup_option = "NoDimensionRollup"
        metric_declarations = [{
          dimensions            = [[]]
          metric_name_selectors = ["shardwalker_lag_seconds"]
        }]
      }
    }
    service = { pipelines = { metrics = { receivers = ["prometheus"], exporters = ["awsemf"] } } }
  }
}

resource "aws_ecs_task_definition" "this" {
  family                   = "shardwalker"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = 512
  memory                   = 1024
  task_role_arn            = aws_iam_role.this.arn
  execution_role_arn       = aws_iam_role.execution.arn

  volume {
    name = "config"
  }

  container_definitions = jsonencode([
    {
      name                   = "config"
      image                  = var.init_image
      essential              = false
      readonlyRootFilesystem = true
      command                = ["sh", "-c", "printenv CONFIG > /config/shardwalker.toml"]
      secrets                = [{ name = "CONFIG", valueFrom = aws_ssm_parameter.config.arn }]
      mountPoints            = [{ sourceVolume = "config", containerPath = "/config" }]
    },
    {
      name                   = "shardwalker"
      image                  = var.image
      essential              = true
      dependsOn              = [{ containerName = "config", condition = "SUCCESS" }]
      command                = ["run", "--config", "/config/shardwalker.toml"]
      user                   = "65532:65532"
      readonlyRootFilesystem = true
      linuxParameters        = { capabilities = { drop = ["ALL"] } }
      # Longer than `grace`, 25 s by default.
      stopTimeout = 60
      healthCheck = {
        # A peer's outage is told as well, which no restart mends: ten times in a row.
        command     = ["CMD", "/shardwalker", "health", "--config", "/config/shardwalker.toml"]
        interval    = 60
        timeout     = 10
        retries     = 10
        startPeriod = 300
      }
      mountPoints      = [{ sourceVolume = "config", containerPath = "/config", readOnly = true }]
      logConfiguration = local.logs["worker"]
    },
    {
      name             = "collector"
      image            = var.collector_image
      essential        = false
      environment      = [{ name = "AOT_CONFIG_CONTENT", value = yamlencode(local.collector) }]
      logConfiguration = local.logs["collector"]
    },
  ])
}

resource "aws_ecs_service" "this" {
  name                               = "shardwalker"
  cluster                            = aws_ecs_cluster.this.id
  task_definition                    = aws_ecs_task_definition.this.arn
  launch_type                        = "FARGATE"
  desired_count                      = var.workers.min
  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets         = var.subnets
    security_groups = [aws_security_group.this.id]
  }

  lifecycle {
    ignore_changes = [desired_count]
  }
}

resource "aws_appautoscaling_target" "this" {
  service_namespace  = "ecs"
  scalable_dimension = "ecs:service:DesiredCount"
  resource_id        = "service/${aws_ecs_cluster.this.name}/${aws_ecs_service.this.name}"
  min_capacity       = var.workers.min
  max_capacity       = var.workers.max
}

resource "aws_appautoscaling_policy" "lag" {
  name               = "lag"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.this.service_namespace
  scalable_dimension = aws_appautoscaling_target.this.scalable_dimension
  resource_id        = aws_appautoscaling_target.this.resource_id

  target_tracking_scaling_policy_configuration {
    target_value       = var.lag_target
    scale_out_cooldown = 120
    # A shard is handed over in seconds; going back and forth helps nobody.
    scale_in_cooldown = 900

    customized_metric_specification {
      namespace   = "Shardwalker"
      metric_name = "shardwalker_lag_seconds"
      # Without a unit, because the collector gives none: an alarm finds only what has its unit.
      statistic = "Average"
    }
  }
}
