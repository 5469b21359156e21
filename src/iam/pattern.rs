//! Patterns of IAM policies: `*`, `?` and variables, in texts and in ARNs.
//!
//! Owns what a pattern matches. A variable's value, and `${*}`, `${?}` and `${$}`, stand for themselves: only what the
//! policy itself says is a wildcard.

use super::condition::Context;

/// A pattern once its variables have their values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Token>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// This one.
    Byte(u8),
    /// Any one.
    One,
    /// Any number of any.
    Any,
    /// Any number of any but `:`.
    Within,
}

/// The colons of an ARN, up to the resource's own part.
const COLONS: usize = 5;

impl Pattern {
    /// A text without variables.
    pub(super) fn plain(text: &str) -> Self {
        let token = |byte| match byte {
            b'*' => Token::Any,
            b'?' => Token::One,
            byte => Token::Byte(byte),
        };
        Self(text.bytes().map(token).collect())
    }

    /// A text with variables; `None` when the request has no value for one that has no default.
    pub(super) fn read(text: &str, context: &Context<'_>) -> Option<Self> {
        let (mut rest, mut pattern) = (text, Self(Vec::new()));
        while let Some(start) = rest.find("${") {
            pattern.0.extend(Self::plain(&rest[..start]).0);
            let end = start + rest[start..].find('}')?;
            match &rest[start + 2..end] {
                literal @ ("*" | "?" | "$") => pattern.literally(literal),
                variable => {
                    let (key, default) = match variable.split_once(',') {
                        Some((key, default)) => (key.trim(), Some(default.trim().trim_matches('\''))),
                        None => (variable, None),
                    };
                    match context(&key.to_ascii_lowercase()).as_deref() {
                        Some([value]) => pattern.literally(value),
                        _ => pattern.literally(default?),
                    }
                }
            }
            rest = &rest[end + 1..];
        }
        pattern.0.extend(Self::plain(rest).0);
        Some(pattern)
    }

    fn literally(&mut self, text: &str) {
        self.0.extend(text.bytes().map(Token::Byte));
    }

    /// As a text, where wildcards mean nothing.
    pub(super) fn text(&self) -> String {
        let byte = |token: &Token| match token {
            Token::Byte(byte) => *byte,
            Token::One => b'?',
            Token::Any | Token::Within => b'*',
        };
        String::from_utf8_lossy(&self.0.iter().map(byte).collect::<Vec<_>>()).into_owned()
    }

    /// Whether it matches a text.
    pub(super) fn matches(&self, text: &str) -> bool {
        // Most patterns are texts, or texts with a star at the end.
        let plain =
            self.0.iter().zip(text.as_bytes()).take_while(|(token, byte)| **token == Token::Byte(**byte));
        let plain = plain.count();
        let (tokens, text) = (&self.0[plain..], &text.as_bytes()[plain..]);
        match tokens {
            [] => return text.is_empty(),
            [Token::Any] => return true,
            [Token::Byte(_), ..] => return false,
            _ => {}
        }
        // Which beginnings of the text the tokens so far match, by their lengths.
        let (mut so_far, mut next) = (vec![false; text.len() + 1], vec![false; text.len() + 1]);
        so_far[0] = true;
        for token in tokens {
            for length in 0..=text.len() {
                let before = length.checked_sub(1);
                let one_more = |reached: &[bool]| before.is_some_and(|before| reached[before]);
                let last = before.map(|before| text[before]);
                next[length] = match token {
                    Token::Byte(byte) => last == Some(*byte) && one_more(&so_far),
                    Token::One => one_more(&so_far),
                    Token::Any => so_far[length] || one_more(&next),
                    Token::Within => so_far[length] || last != Some(b':') && one_more(&next),
                };
            }
            std::mem::swap(&mut so_far, &mut next);
        }
        so_far[text.len()]
    }

    /// Whether it matches an ARN part by part, as the conditions on ARNs do: a `*` stays within its part.
    pub(super) fn matches_arn(&self, arn: &str) -> bool {
        if self.colons() < COLONS {
            return self.matches(arn);
        }
        self.bounded(|_| true).matches(arn)
    }

    /// Whether it matches a resource's ARN: a `*` at the end of a part goes on beyond it, one within a part does not, and
    /// what is left out at the end is anything.
    pub(super) fn matches_resource(&self, arn: &str) -> bool {
        let inner = self.bounded(|next| next.is_some_and(|token| *token != Token::Byte(b':')));
        if inner.matches(arn) {
            return true;
        }
        let mut whole = inner;
        whole.0.extend([Token::Byte(b':'), Token::Any]);
        self.colons() < COLONS && whole.matches(arn)
    }

    fn colons(&self) -> usize {
        self.0.iter().filter(|token| **token == Token::Byte(b':')).count()
    }

    /// With stars that stay within their part before the resource's own one, where what follows them says so.
    fn bounded(&self, stays: impl Fn(Option<&Token>) -> bool) -> Self {
        let mut colons = 0;
        let token = |(index, token): (usize, &Token)| {
            colons += usize::from(*token == Token::Byte(b':'));
            match token {
                Token::Any if colons < COLONS && stays(self.0.get(index + 1)) => Token::Within,
                token => *token,
            }
        };
        Self(self.0.iter().enumerate().map(token).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the user guide has it of the element Resource.
    #[test]
    fn resources() {
        let table = "arn:aws:dynamodb:eu-west-1:111111111111:table/orders";
        for (pattern, expected) in [
            ("*", true),
            (table, true),
            ("arn:aws:dynamodb:eu-west-1:111111111111:table/Orders", false),
            ("arn:aws:dynamodb:*:*:table/ord?rs", true),
            ("arn:aws:dynamodb:eu-*-1:111111111111:table/*", true),
            ("arn:aws:dynamodb:eu-*:111111111111:table/o*s", true),
            ("arn:aws:dynamodb:*:table/orders", true),
            ("arn:aws:dynamodb:eu-*:table/orders", true),
            ("arn:aws:dynamodb:e*1:table/orders", false),
            ("arn:aws:dynamodb", true),
            ("arn:aws:dynamodb:eu-west-1", true),
            ("arn:aws:dynamodb:us-east-1", false),
            ("arn:aws:s3", false),
        ] {
            assert_eq!(Pattern::plain(pattern).matches_resource(table), expected, "{pattern}");
        }
    }

    #[test]
    fn arns_in_conditions() {
        let role = "arn:aws:iam::111111111111:role/app-1";
        for (pattern, expected) in [
            ("*", true),
            ("arn:aws:iam::*:role/app-*", true),
            ("arn:aws:iam::*:*", true),
            ("arn:aws:iam:*:role/app-1:*", false),
            ("arn:aws:iam::1*:role/*", true),
            ("arn:aws:iam::1*:user/*", false),
        ] {
            assert_eq!(Pattern::plain(pattern).matches_arn(role), expected, "{pattern}");
        }
    }
}
