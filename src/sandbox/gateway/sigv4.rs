//! AWS Signature Version 4: who signed a request, for which Region and service, and whether the signature holds.
//!
//! The date of a signature is not compared with the sandbox's clock, which tests turn as they like.

use crate::sandbox::error::{ApiError, ApiResult};
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use http::request::Parts;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What the Authorization header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// The access key's id.
    pub access_key_id: String,
    /// The day of the scope, `YYYYMMDD`.
    pub date: String,
    /// The Region of the scope.
    pub region: String,
    /// The service of the scope.
    pub service: String,
    /// The names of the signed headers, in order.
    signed_headers: String,
    /// The signature in hexadecimal.
    signature: String,
}

impl Authorization {
    /// Reads the Authorization header.
    ///
    /// # Errors
    /// `MissingAuthenticationTokenException` without one, `IncompleteSignatureException` when it lacks a part.
    pub fn read(headers: &HeaderMap) -> ApiResult<Self> {
        let Some(value) = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok()) else {
            return Err(ApiError::new("MissingAuthenticationTokenException", "Missing Authentication Token"));
        };
        let incomplete = || {
            let message = format!("Authorization header is not a complete AWS4-HMAC-SHA256 one: {value}");
            ApiError::new("IncompleteSignatureException", message)
        };
        let fields = value.strip_prefix("AWS4-HMAC-SHA256").ok_or_else(incomplete)?;
        let field = |name: &str| {
            let mut all = fields.split(',').filter_map(|field| field.trim().split_once('='));
            all.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).ok_or_else(incomplete)
        };
        let credential = field("Credential")?;
        let scope: Vec<&str> = credential.split('/').collect();
        let [key, date, region, service, "aws4_request"] = scope[..] else { return Err(incomplete()) };
        Ok(Self {
            access_key_id: key.into(),
            date: date.into(),
            region: region.into(),
            service: service.into(),
            signed_headers: field("SignedHeaders")?,
            signature: field("Signature")?,
        })
    }
}

/// Checks signatures; keeps the signing keys of the day, which cost four times what a check does.
#[derive(Debug, Default)]
pub struct Verifier {
    keys: Mutex<BTreeMap<String, [u8; 32]>>,
}

/// How many signing keys are kept: more than a test has sessions; over it, all are made anew.
const KEYS_KEPT: usize = 1024;

impl Verifier {
    /// Checks that the secret signed this request.
    ///
    /// # Errors
    /// `InvalidSignatureException` when it did not.
    pub fn verify(&self, auth: &Authorization, secret: &str, parts: &Parts, body: &[u8]) -> ApiResult<()> {
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let time = header("x-amz-date").unwrap_or_default();
        let canonical = canonical_request(auth, parts, body);
        let scope = format!("{}/{}/{}/aws4_request", auth.date, auth.region, auth.service);
        let digest = hex::encode(Sha256::digest(canonical.as_bytes()));
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}");
        let key = self.signing_key(auth, secret);
        let expected = hex::encode(hmac(&key, to_sign.as_bytes()));
        if expected == auth.signature {
            return Ok(());
        }
        Err(ApiError::new(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check your AWS \
             Secret Access Key and signing method. Consult the service documentation for details.",
        ))
    }

    fn signing_key(&self, auth: &Authorization, secret: &str) -> [u8; 32] {
        let Authorization { access_key_id, date, region, service, .. } = auth;
        let name = format!("{access_key_id}/{date}/{region}/{service}");
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = keys.get(&name) {
            return *key;
        }
        if keys.len() >= KEYS_KEPT {
            keys.clear();
        }
        let start = hmac(format!("AWS4{secret}").as_bytes(), date.as_bytes());
        let key = [region, service, "aws4_request"]
            .iter()
            .fold(start, |key, field: &&str| hmac(&key, field.as_bytes()));
        keys.insert(name, key);
        key
    }
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    // HMAC takes keys of any length: a key longer than a block is hashed, a shorter one padded.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn canonical_request(auth: &Authorization, parts: &Parts, body: &[u8]) -> String {
    let mut query: Vec<&str> =
        parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).collect();
    query.sort_unstable();
    let mut text = format!("{}\n{}\n{}\n", parts.method, parts.uri.path(), query.join("&"));
    for name in auth.signed_headers.split(';') {
        let mut values: Vec<String> = parts
            .headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .map(|value| value.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        if values.is_empty() && name == "host" {
            values.extend(parts.uri.authority().map(ToString::to_string));
        }
        text.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    let declared = parts.headers.get("x-amz-content-sha256").and_then(|value| value.to_str().ok());
    let payload = match declared {
        Some("UNSIGNED-PAYLOAD") => "UNSIGNED-PAYLOAD".to_owned(),
        _ => hex::encode(Sha256::digest(body)),
    };
    text.push_str(&format!("\n{}\n{payload}", auth.signed_headers));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The `post-vanilla` case of AWS's signature test suite.
    #[test]
    fn aws_test_suite_post_vanilla() {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let request = http::Request::post("/")
            .header("host", "example.amazonaws.com")
            .header("x-amz-date", "20150830T123600Z")
            .header(
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders=host;x-amz-date, \
                 Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            );
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let auth = Authorization::read(&parts.headers).unwrap();
        assert_eq!((auth.region.as_str(), auth.service.as_str()), ("us-east-1", "service"));
        Verifier::default().verify(&auth, secret, &parts, b"").unwrap();
        let error = Verifier::default().verify(&auth, "another", &parts, b"").unwrap_err();
        assert_eq!(error.code, "InvalidSignatureException");
    }
}
