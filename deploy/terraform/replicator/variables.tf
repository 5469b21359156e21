variable "image" {
  description = "The image, with its digest"
  type        = string
}

variable "config" {
  description = "The config (TOML; docs/config.md), whose [state] table is state_table"
  type        = string
}

variable "vpc" {
  description = "The VPC's id"
  type        = string
}

variable "subnets" {
  description = "Subnets that reach DynamoDB, STS and the registry, through endpoints or NAT"
  type        = list(string)
}

variable "policies" {
  description = "ARNs of more managed policies for the role; the file that `shardwalker policy --format terraform` writes for this account attaches its own"
  type        = list(string)
  default     = []
}

variable "state_table" {
  description = "The state table's name"
  type        = string
  default     = "shardwalker-state"
}

variable "role_name" {
  description = "The role that the members let in; `shardwalker policy --principal` names it"
  type        = string
  default     = "shardwalker"
}

variable "workers" {
  description = "The least and the most workers; the least is 0 at first, until the members let the role in"
  type        = object({ min = number, max = number })
  default     = { min = 2, max = 8 }
}

variable "lag_target" {
  description = "The average lag, in seconds, above which workers are added"
  type        = number
  default     = 10
}

variable "collector_image" {
  description = "Brings the lag to CloudWatch, for the scaling"
  type        = string
  default     = "public.ecr.aws/aws-observability/aws-otel-collector:v0.43.3"
}

variable "init_image" {
  description = "Writes the config into the task before the worker starts; the worker's image has no shell"
  type        = string
  default     = "public.ecr.aws/docker/library/busybox:1.37"
}
