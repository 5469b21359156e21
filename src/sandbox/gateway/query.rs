//! The Query protocol, in which IAM and STS are asked: form in, XML out.

use super::{Dropped, Source, What};
use crate::sandbox::Sandbox;
use crate::sandbox::error::ApiResult;
use crate::sandbox::faults::Target;
use crate::sandbox::gateway::sigv4::Authorization;
use crate::sandbox::iam::Caller;
use crate::sandbox::iam::sts::{Call, Params};

impl Sandbox {
    pub(super) async fn query_protocol(
        &self,
        auth: &Authorization,
        caller: &Caller,
        source: &Source,
        body: &[u8],
        request_id: &str,
    ) -> Result<ApiResult<Vec<u8>>, Dropped> {
        let params = form(&String::from_utf8_lossy(body));
        let operation = params.get("Action").cloned().unwrap_or_default();
        let own = &caller.principal.account;
        let of_role = params.get("RoleArn").and_then(|arn| arn.split(':').nth(4)).map(String::from);
        let account = of_role.unwrap_or_else(|| own.clone());
        let target = Target {
            operation: &operation,
            account: &account,
            table: None,
            caller: &caller.principal.arn,
            caller_account: own,
        };
        let effect = self.faults().strike(&target, |_| false);
        let resource = params.get("RoleArn").cloned().unwrap_or_else(|| account.clone());
        let what = What { operation: &operation, account: &account, resource: &resource };
        self.under(effect, auth, &what, || {
            let now_ms = self.clock().now_ms();
            let call = Call { caller, source, params: &params, now_ms, chance: self.chance() };
            let delay_ms = self.faults().weather().policy_delay_ms;
            let mut directory = self.directory_mut();
            let (namespace, result) = match auth.service.as_str() {
                "sts" => ("https://sts.amazonaws.com/doc/2011-06-15/", directory.sts(&operation, &call)?),
                _ => ("https://iam.amazonaws.com/doc/2010-05-08/", directory.iam(&operation, &call, delay_ms)?),
            };
            let answer = format!(
                "<{operation}Response xmlns=\"{namespace}\"><{operation}Result>{result}</{operation}Result>\
                 <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{operation}Response>"
            );
            Ok(answer.into_bytes())
        })
        .await
    }
}

/// The fields of a form.
fn form(body: &str) -> Params {
    let pairs = body.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| first == b'%');
        let value = escaped.and_then(|digits| hex::decode(digits).ok());
        rest = if value.is_some() { &tail[2..] } else { tail };
        match value {
            Some(value) => bytes.extend(value),
            None => bytes.push(if first == b'+' { b' ' } else { first }),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        let params = form("Action=PutUserPolicy&PolicyDocument=%7B%22a%22%3A+1%7D&Empty=&Odd=100%");
        assert_eq!(params["PolicyDocument"], "{\"a\": 1}");
        assert_eq!((params["Empty"].as_str(), params["Odd"].as_str()), ("", "100%"));
    }
}
