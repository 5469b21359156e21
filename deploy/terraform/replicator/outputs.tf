output "role_arn" {
  description = "What `shardwalker policy --principal` takes"
  value       = aws_iam_role.this.arn
}

output "state_table_arn" {
  description = "The config's [state] table"
  value       = aws_dynamodb_table.state.arn
}
