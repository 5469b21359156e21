//! Endpoints: URLs that requests go to instead of the ones the SDK would choose.
//!
//! Knows which hosts are AWS's and which Region they serve, so that a client never signs for one Region and
//! calls another.

use super::values::{Fault, shown, string};
use http::Uri;
use std::net::IpAddr;
use toml::de::DeValue;

/// A checked endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// As the user wrote it.
    pub(super) url: String,
    /// Whose the host is.
    pub(super) host: Host,
}

/// Whose an endpoint's host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// AWS's, with the Region that its name holds, if it holds one.
    Aws(Option<String>),
    /// An emulator, a proxy or the sandbox: serves any Region.
    Custom,
}

/// How AWS's hosts end, in all partitions of the SDK's own list.
const AWS_DOMAINS: [&str; 14] = [
    ".amazonaws.com",
    ".api.aws",
    ".amazonaws.com.cn",
    ".api.amazonwebservices.com.cn",
    ".amazonaws.eu",
    ".api.amazonwebservices.eu",
    ".c2s.ic.gov",
    ".api.aws.ic.gov",
    ".sc2s.sgov.gov",
    ".api.aws.scloud",
    ".cloud.adc-e.uk",
    ".api.cloud-aws.adc-e.uk",
    ".csp.hci.ic.gov",
    ".api.aws.hci.ic.gov",
];

/// Parses an endpoint. Plain `http` is for loopback addresses, and elsewhere only when `allow_http`.
pub(super) fn endpoint(allow_http: bool) -> impl Fn(&DeValue<'_>) -> Result<Endpoint, Fault> {
    move |value| {
        let url = string(value)?;
        let not_url = |found: &str| {
            Fault::new(format!("must be a URL such as \"https://dynamodb.example.com:8000\", not {found}"))
        };
        if url.contains('@') {
            // Not shown: what stands before the @ is a password.
            return Err(Fault::new("must be a URL without user name and password")
                .remedy("credentials are never in the file: use a profile, a role or the environment"));
        }
        let uri: Uri = url.parse().map_err(|_| not_url(&shown(&url)))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(not_url(&shown(&url)));
        };
        let host = authority.host();
        let port =
            authority.as_str().len() == host.len() || authority.port_u16().is_some_and(|port| port > 0);
        if host.is_empty() || !port || url.contains(['?', '#']) || !matches!(scheme, "http" | "https") {
            return Err(not_url(&shown(&url)));
        }
        if scheme == "http" && !allow_http && !is_loopback(host) {
            return Err(Fault::new(format!(
                "must be https, items would travel in the clear to host {}",
                shown(host)
            ))
            .remedy("use https, or set allow_http = true at the top level if that network is yours"));
        }
        let host = classify(host);
        Ok(Endpoint { url, host })
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match address {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost"),
    }
}

fn classify(host: &str) -> Host {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if AWS_DOMAINS.iter().any(|domain| host.ends_with(domain)) {
        Host::Aws(host.split('.').find(|label| is_region_label(label)).map(str::to_owned))
    } else {
        Host::Custom
    }
}

/// `eu-west-1`, `us-gov-east-1`, ...: words of letters, then one number. Other labels of AWS's hosts
/// (`vpce-0a1b2c3d-4e5f`, `dynamodb-fips`) have another shape.
fn is_region_label(label: &str) -> bool {
    let mut words: Vec<&str> = label.split('-').collect();
    let number = words.pop().unwrap_or_default();
    words.len() >= 2
        && words.iter().all(|word| word.len() >= 2 && word.bytes().all(|byte| byte.is_ascii_lowercase()))
        && (1..=2).contains(&number.len())
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_aws_gives_its_region() {
        let cases = [
            ("dynamodb.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("streams.dynamodb.us-gov-east-1.amazonaws.com", Some("us-gov-east-1")),
            ("dynamodb-fips.us-east-1.amazonaws.com", Some("us-east-1")),
            ("111122223333.ddb.eu-central-1.amazonaws.com", Some("eu-central-1")),
            ("vpce-0a1b2c3d4e5f-6a7b8c9d.dynamodb.eu-west-1.vpce.amazonaws.com", Some("eu-west-1")),
            ("vpce-0a1b-6a7b-eu-west-1a.dynamodb.eu-west-1.vpce.amazonaws.com", Some("eu-west-1")),
            ("dynamodb.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("dynamodb.ap-southeast-2.api.aws", Some("ap-southeast-2")),
            ("DynamoDB.EU-West-1.amazonaws.com.", Some("eu-west-1")),
            ("sts.amazonaws.com", None),
        ];
        for (host, region) in cases {
            assert_eq!(classify(host), Host::Aws(region.map(str::to_owned)), "{host}");
        }
        for host in ["localhost", "127.0.0.1", "[::1]", "amazonaws.com.example.org", "notamazonaws.com"] {
            assert_eq!(classify(host), Host::Custom, "{host}");
        }
    }

    #[test]
    fn loopback_is_known_by_name_and_address() {
        for host in ["localhost", "ddb.LOCALHOST", "127.0.0.1", "127.8.9.1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["10.0.0.1", "localhost.example.com", "[::2]", "0.0.0.0"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
