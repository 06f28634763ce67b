use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{DeriveInput, Error, Field, Ident, LitInt, LitStr, Path, Result};

use crate::columns::{column, name_of};

/// The attributes of the struct.
struct Attributes {
    name: LitStr,
    version: TokenStream,
    message: LitStr,
    topic: LitStr,
    validate: Option<Path>,
}

impl Attributes {
    fn read(input: &DeriveInput) -> Result<Self> {
        let (mut name, mut version, mut message, mut topic, mut validate) = (None, None, None, None, None);
        for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("record")) {
            attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("name") {
                    name = Some(meta.value()?.parse::<LitStr>()?);
                } else if meta.path.is_ident("version") {
                    version = Some(meta.value()?.parse::<LitInt>()?);
                } else if meta.path.is_ident("message") {
                    message = Some(meta.value()?.parse::<LitStr>()?);
                } else if meta.path.is_ident("topic") {
                    topic = Some(meta.value()?.parse::<LitStr>()?);
                } else if meta.path.is_ident("validate") {
                    validate = Some(meta.value()?.parse::<Path>()?);
                } else {
                    return Err(meta.error("must be name, version, message, topic or validate"));
                }
                Ok(())
            })?;
        }
        let Some(name) = name else {
            let rule = "a record needs a name: add `#[record(name = \"...\")]`";
            return Err(Error::new_spanned(&input.ident, rule));
        };
        check_name(&name.value(), name.span())?;
        let default_topic = LitStr::new(&name.value().replace('_', "-"), name.span());
        Ok(Self {
            message: message.unwrap_or_else(|| name.clone()),
            topic: topic.unwrap_or(default_topic),
            version: version.map_or_else(|| quote!(1), |version| quote!(#version)),
            name,
            validate,
        })
    }
}

/// Checks a name by the same rule as `Dataset`.
fn check_name(name: &str, span: Span) -> Result<()> {
    let valid = (1..=40).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    if valid { Ok(()) } else { Err(Error::new(span, "a name matches [a-z][a-z0-9_]{0,39}")) }
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Series,
    Interval,
    Time,
    Seq,
    Flatten,
    Value,
}

fn role(field: &Field) -> Result<Role> {
    let mut role = Role::Value;
    for (name, marked) in [
        ("series", Role::Series),
        ("interval", Role::Interval),
        ("time", Role::Time),
        ("seq", Role::Seq),
        ("flatten", Role::Flatten),
    ] {
        for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident(name)) {
            if role != Role::Value {
                return Err(Error::new_spanned(attribute, "a field has one role"));
            }
            role = marked;
        }
    }
    Ok(role)
}

/// A record's fields by their roles.
struct Fields {
    all: Vec<(Role, Field)>,
    series: Field,
    interval: Option<Field>,
    time: Field,
    seq: Option<Field>,
}

impl Fields {
    fn read(input: &DeriveInput) -> Result<Self> {
        let all: Vec<(Role, Field)> = crate::named_fields(input, "a record")?
            .into_iter()
            .map(|field| Ok((role(&field)?, field)))
            .collect::<Result<_>>()?;
        for (role, field) in &all {
            if *role != Role::Flatten {
                check_name(&name_of(field), field.ident.span())?;
            }
        }
        let once = |wanted: Role, rule: &str| {
            let mut found = all.iter().filter(|(role, _)| *role == wanted).map(|(_, field)| field);
            let first = found.next().cloned();
            found.next().map_or(Ok(first), |second| Err(Error::new_spanned(second, rule)))
        };
        let required =
            |found: Option<Field>, rule: &str| found.ok_or_else(|| Error::new_spanned(&input.ident, rule));
        let series = once(
            Role::Series,
            "a record has one `#[series]` field; the interval of a bar is marked with `#[interval]`",
        )?;
        Ok(Self {
            series: required(
                series,
                "a record belongs to a series: mark the instrument or the name that it belongs to with `#[series]`",
            )?,
            time: required(
                once(Role::Time, "a record has one `#[time]` field")?,
                "a record has a time: mark a field of type `Timestamp` with `#[time]`",
            )?,
            interval: once(Role::Interval, "a record has one `#[interval]` field")?,
            seq: once(Role::Seq, "a record has one `#[seq]` field")?,
            all,
        })
    }

    /// Returns the fields that are columns or groups of columns, with the trait of each field.
    fn values(&self) -> Vec<(bool, &Field, TokenStream)> {
        let values = self.all.iter().filter_map(|(role, field)| match role {
            Role::Flatten => Some((true, field, quote!(::qi_core::record::Columns))),
            Role::Value => Some((false, field, quote!(::qi_core::record::ColumnValue))),
            _ => None,
        });
        values.collect()
    }
}

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let attributes = Attributes::read(input)?;
    let fields = Fields::read(input)?;
    let (ident, visibility) = (&input.ident, &input.vis);
    let description = description(ident, &attributes, &fields);
    let key = key(&fields);
    let values = values(&attributes, &fields);
    let serde = serde(ident, &fields.all);
    Ok(quote! {
        const _: () = {
            #description

            impl #ident {
                /// The description of the dataset, as [`qi_core::Record::DATASET`].
                #[allow(dead_code)]
                #visibility const DATASET: ::qi_core::record::Dataset = <Self as ::qi_core::record::Record>::DATASET;
            }

            impl ::qi_core::record::Record for #ident {
                const DATASET: ::qi_core::record::Dataset =
                    ::qi_core::record::Dataset::from_static(&DESCRIPTION);
                #key
                #values
            }

            #serde
        };
    })
}

/// Returns the static description of the dataset.
fn description(ident: &Ident, attributes: &Attributes, fields: &Fields) -> TokenStream {
    let Attributes { name, version, message, topic, validate: _ } = attributes;
    let (series_ty, series, time) = (&fields.series.ty, name_of(&fields.series), name_of(&fields.time));
    let series_of = quote_spanned!(series_ty.span() => <#series_ty as ::qi_core::record::Series>);
    let option = |field: &Option<Field>| match field.as_ref().map(name_of) {
        None => quote!(::core::option::Option::None),
        Some(name) => quote!(::core::option::Option::Some(#name)),
    };
    let (interval, seq) = (option(&fields.interval), option(&fields.seq));
    let lists = fields.values().into_iter().map(|(is_group, field, _)| {
        let ty = &field.ty;
        if is_group {
            return quote_spanned!(ty.span() => <#ty as ::qi_core::record::Columns>::COLUMNS);
        }
        let column = column(field);
        quote!(&[#column])
    });
    let lists: Vec<_> = lists.collect();
    quote! {
        const COUNT: usize = 0 #(+ <[::qi_core::record::Column]>::len(#lists))*;
        static COLUMNS: [::qi_core::record::Column; COUNT] =
            ::qi_core::record::macros::concat::<COUNT>(&[#(#lists),*]);
        static DESCRIPTION: ::qi_core::record::Description = ::qi_core::record::Description {
            name: #name,
            version: #version,
            message: #message,
            topic: #topic,
            series: ::qi_core::record::SeriesType::of(#series_of::MAX_NAME, #series),
            interval: #interval,
            time: #time,
            seq: #seq,
            values: &COLUMNS,
            new_vec: ::qi_core::record::RecordVec::of::<#ident>,
        };
    }
}

/// Returns the items of `Record` for the key.
fn key(fields: &Fields) -> TokenStream {
    let (series, ty, time) = (&fields.series.ident, &fields.series.ty, &fields.time.ident);
    let seq = fields.seq.as_ref().map_or_else(
        || quote!(0),
        |field| {
            let seq = &field.ident;
            quote!(self.#seq)
        },
    );
    let (ty, owned, borrowed) = match &fields.interval {
        None => (
            quote!(#ty),
            quote!(::core::clone::Clone::clone(&self.#series)),
            quote!(::qi_core::record::Series::key_ref(&self.#series)),
        ),
        Some(field) => {
            let interval = &field.ident;
            (
                quote!((#ty, ::qi_core::Interval)),
                quote!((::core::clone::Clone::clone(&self.#series), self.#interval)),
                quote!(::qi_core::record::SeriesRef {
                    interval: ::core::option::Option::Some(self.#interval),
                    ..::qi_core::record::Series::key_ref(&self.#series)
                }),
            )
        }
    };
    quote! {
        type Series = #ty;

        fn series(&self) -> Self::Series {
            #owned
        }
        fn series_ref(&self) -> ::qi_core::record::SeriesRef<'_> {
            #borrowed
        }
        fn sort_key(&self) -> ::qi_core::record::SortKey {
            (self.#time, #seq)
        }
    }
}

/// Returns the items of `Record` that write, read and validate the values.
fn values(attributes: &Attributes, fields: &Fields) -> TokenStream {
    let values = fields.values();
    let local = |field: &Field| format_ident!("field_{}", name_of(field));
    let writes = values.iter().map(|(_, Field { ident, .. }, part)| quote!(#part::write(&self.#ident, out);));
    let reads = values.iter().map(|(_, field, part)| {
        let (ty, local) = (&field.ty, local(field));
        quote!(let #local = <#ty as #part>::read(fields)?;)
    });
    let checks = values.iter().map(|(is_group, field, part)| {
        let (ident, name) = (&field.ident, name_of(field));
        if *is_group {
            quote!(#part::check(&self.#ident)?;)
        } else {
            quote!(#part::check(&self.#ident, #name)?;)
        }
    });
    let makes = fields.all.iter().map(|(role, field)| {
        let value = match role {
            Role::Series if fields.interval.is_some() => quote!(series.0),
            Role::Series => quote!(series),
            Role::Interval => quote!(series.1),
            Role::Time => quote!(sort_key.0),
            Role::Seq => quote!(sort_key.1),
            Role::Flatten | Role::Value => {
                let local = local(field);
                quote!(#local)
            }
        };
        let ident = &field.ident;
        quote!(#ident: #value)
    });
    let (time, time_name) = (&fields.time.ident, name_of(&fields.time));
    let seq = fields.seq.as_ref().map_or_else(
        || quote!(::core::option::Option::None),
        |field| {
            let (seq, name) = (&field.ident, name_of(field));
            quote!(::core::option::Option::Some((#name, self.#seq)))
        },
    );
    let validate = attributes.validate.as_ref().map(|path| quote!(#path(self)?;));
    quote! {
        fn write<W: ::qi_core::record::FieldWriter + ?Sized>(&self, out: &mut W) {
            #(#writes)*
        }
        fn read<F: ::qi_core::record::FieldReader + ?Sized>(
            series: Self::Series,
            sort_key: ::qi_core::record::SortKey,
            fields: &mut F,
        ) -> ::qi_core::Result<Self> {
            #(#reads)*
            let record = Self { #(#makes),* };
            ::qi_core::record::Record::validate(&record)?;
            ::core::result::Result::Ok(record)
        }
        fn validate(&self) -> ::qi_core::Result<()> {
            ::qi_core::record::macros::check_sort_key((#time_name, self.#time), #seq)?;
            #(#checks)*
            #validate
            ::core::result::Result::Ok(())
        }
    }
}

/// Returns serde's traits. They keep the declared order of the fields, omit absent fields, and validate
/// every record that they read.
fn serde(ident: &Ident, fields: &[(Role, Field)]) -> TokenStream {
    let attribute = |role: Role, by_reference: bool| match role {
        Role::Flatten => quote!(#[serde(flatten)]),
        Role::Value if by_reference => {
            quote!(#[serde(skip_serializing_if = "::qi_core::record::macros::is_absent")])
        }
        _ => quote!(),
    };
    let attributes = fields.iter().map(|(role, _)| attribute(*role, true));
    let raw_attributes = fields.iter().map(|(role, _)| attribute(*role, false));
    let names: Vec<_> = fields.iter().filter_map(|(_, field)| field.ident.as_ref()).collect();
    let types: Vec<_> = fields.iter().map(|(_, field)| &field.ty).collect();
    let title = ident.to_string();
    quote! {
        #[derive(::qi_core::record::macros::serde::Serialize)]
        #[serde(crate = "::qi_core::record::macros::serde", rename = #title)]
        struct Borrowed<'a> {
            #(#attributes #names: &'a #types,)*
        }

        #[derive(::qi_core::record::macros::serde::Deserialize)]
        #[serde(crate = "::qi_core::record::macros::serde", rename = #title)]
        struct Raw {
            #(#raw_attributes #names: #types,)*
        }

        impl ::qi_core::record::macros::serde::Serialize for #ident {
            fn serialize<S: ::qi_core::record::macros::serde::Serializer>(
                &self,
                serializer: S,
            ) -> ::core::result::Result<S::Ok, S::Error> {
                ::qi_core::record::macros::serde::Serialize::serialize(
                    &Borrowed { #(#names: &self.#names),* },
                    serializer,
                )
            }
        }

        impl<'de> ::qi_core::record::macros::serde::Deserialize<'de> for #ident {
            fn deserialize<D: ::qi_core::record::macros::serde::Deserializer<'de>>(
                deserializer: D,
            ) -> ::core::result::Result<Self, D::Error> {
                let Raw { #(#names),* } = ::qi_core::record::macros::serde::Deserialize::deserialize(deserializer)?;
                let record = Self { #(#names),* };
                ::qi_core::record::Record::validate(&record)
                    .map_err(::qi_core::record::macros::serde::de::Error::custom)?;
                ::core::result::Result::Ok(record)
            }
        }
    }
}
