use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
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

/// The rule of `Dataset`.
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

/// The field of a role that a record has once.
fn only<'a>(fields: &'a [(Role, Field)], role: Role, rule: &str) -> Result<Option<&'a Field>> {
    let mut found = fields.iter().filter(|(of, _)| *of == role).map(|(_, field)| field);
    let first = found.next();
    match found.next() {
        Some(second) => Err(Error::new_spanned(second, rule)),
        None => Ok(first),
    }
}

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let Attributes { name, version, message, topic, validate } = Attributes::read(input)?;
    let fields: Vec<(Role, Field)> = crate::named_fields(input, "a record")?
        .into_iter()
        .map(|field| Ok((role(&field)?, field)))
        .collect::<Result<_>>()?;
    let required =
        |found: Option<Field>, rule: &str| found.ok_or_else(|| Error::new_spanned(&input.ident, rule));
    let series = only(
        &fields,
        Role::Series,
        "a record has one `#[series]` field; the interval of a bar is marked with `#[interval]`",
    )?;
    let series = required(
        series.cloned(),
        "a record belongs to a series: mark the instrument or the name that it belongs to with `#[series]`",
    )?;
    let time = only(&fields, Role::Time, "a record has one `#[time]` field")?;
    let time =
        required(time.cloned(), "a record has a time: mark a field of type `Timestamp` with `#[time]`")?;
    let interval = only(&fields, Role::Interval, "a record has one `#[interval]` field")?;
    let seq = only(&fields, Role::Seq, "a record has one `#[seq]` field")?;
    for (role, field) in &fields {
        if *role != Role::Flatten {
            check_name(&name_of(field), field.ident.span())?;
        }
    }

    let ident = &input.ident;
    let (series_field, series_ty, series_name) = (&series.ident, &series.ty, name_of(&series));
    let (time_field, time_name) = (&time.ident, name_of(&time));
    let series_of = quote_spanned!(series_ty.span() => <#series_ty as ::qi_core::record::Series>);
    let key_ty = match interval {
        None => quote!(#series_ty),
        Some(_) => quote!((#series_ty, ::qi_core::Interval)),
    };
    let option = |name: Option<String>| match name {
        None => quote!(::core::option::Option::None),
        Some(name) => quote!(::core::option::Option::Some(#name)),
    };
    let interval_name = option(interval.map(name_of));
    let seq_name = option(seq.map(name_of));
    let seq_place = seq.map_or_else(
        || quote!(0),
        |field| {
            let seq = &field.ident;
            quote!(self.#seq)
        },
    );
    let seq_check = match seq {
        None => quote!(::core::option::Option::None),
        Some(field) => {
            let (seq, name) = (&field.ident, name_of(field));
            quote!(::core::option::Option::Some((#name, self.#seq)))
        }
    };
    let (series_key, series_ref) = match interval {
        None => (
            quote!(::core::clone::Clone::clone(&self.#series_field)),
            quote!(::qi_core::record::Series::as_ref(&self.#series_field)),
        ),
        Some(field) => {
            let interval = &field.ident;
            (
                quote!((::core::clone::Clone::clone(&self.#series_field), self.#interval)),
                quote!(::qi_core::record::SeriesRef {
                    interval: ::core::option::Option::Some(self.#interval),
                    ..::qi_core::record::Series::as_ref(&self.#series_field)
                }),
            )
        }
    };

    let values: Vec<&(Role, Field)> =
        fields.iter().filter(|(role, _)| matches!(role, Role::Value | Role::Flatten)).collect();
    let lists = values.iter().map(|(role, field)| {
        let ty = &field.ty;
        if *role == Role::Flatten {
            quote_spanned!(ty.span() => <#ty as ::qi_core::record::Columns>::COLUMNS)
        } else {
            let column = column(field);
            quote!(&[#column])
        }
    });
    let lists: Vec<_> = lists.collect();
    let part = |role: Role| match role {
        Role::Flatten => quote!(::qi_core::record::Columns),
        _ => quote!(::qi_core::record::ColumnValue),
    };
    let writes = values.iter().map(|(role, field)| {
        let (part, name) = (part(*role), &field.ident);
        quote!(#part::write(&self.#name, out);)
    });
    let checks = values.iter().map(|(role, field)| {
        let (part, name, label) = (part(*role), &field.ident, name_of(field));
        if *role == Role::Flatten {
            quote!(#part::check(&self.#name)?;)
        } else {
            quote!(#part::check(&self.#name, #label)?;)
        }
    });
    let local = |field: &Field| {
        format_ident!(
            "field_{}",
            field.ident.as_ref().map_or_else(|| Ident::new("_", Span::call_site()), Ident::unraw)
        )
    };
    let reads = values.iter().map(|(role, field)| {
        let (part, ty, local) = (part(*role), &field.ty, local(field));
        quote!(let #local = <#ty as #part>::read(fields)?;)
    });
    let makes = fields.iter().map(|(role, field)| {
        let name = &field.ident;
        match role {
            Role::Series if interval.is_some() => quote!(#name: series.0),
            Role::Series => quote!(#name: series),
            Role::Interval => quote!(#name: series.1),
            Role::Time => quote!(#name: place.0),
            Role::Seq => quote!(#name: place.1),
            Role::Flatten | Role::Value => {
                let local = local(field);
                quote!(#name: #local)
            }
        }
    });
    let validate = validate.map(|path| quote!(#path(self)?;));
    let serde = serde(ident, &fields);
    Ok(quote! {
        const _: () = {
            const COUNT: usize = 0 #(+ <[::qi_core::record::Column]>::len(#lists))*;
            static COLUMNS: [::qi_core::record::Column; COUNT] =
                ::qi_core::record::macros::concat::<COUNT>(&[#(#lists),*]);
            static DESCRIPTION: ::qi_core::record::Description = ::qi_core::record::Description {
                name: #name,
                version: #version,
                message: #message,
                topic: #topic,
                series: ::qi_core::record::SeriesType::of(#series_of::MAX_NAME, #series_name),
                interval: #interval_name,
                time: #time_name,
                seq: #seq_name,
                values: &COLUMNS,
                new_vec: ::qi_core::record::RecordVec::of::<#ident>,
            };

            impl ::qi_core::record::Record for #ident {
                type Series = #key_ty;
                const DATASET: ::qi_core::record::Dataset = ::qi_core::record::Dataset::from_static(&DESCRIPTION);

                fn series(&self) -> Self::Series {
                    #series_key
                }
                fn series_ref(&self) -> ::qi_core::record::SeriesRef<'_> {
                    #series_ref
                }
                fn place(&self) -> ::qi_core::record::Place {
                    (self.#time_field, #seq_place)
                }
                fn write<W: ::qi_core::record::FieldWriter + ?Sized>(&self, out: &mut W) {
                    #(#writes)*
                }
                fn read<F: ::qi_core::record::FieldReader + ?Sized>(
                    series: Self::Series,
                    place: ::qi_core::record::Place,
                    fields: &mut F,
                ) -> ::qi_core::Result<Self> {
                    #(#reads)*
                    let record = Self { #(#makes),* };
                    ::qi_core::record::Record::validate(&record)?;
                    ::core::result::Result::Ok(record)
                }
                fn validate(&self) -> ::qi_core::Result<()> {
                    ::qi_core::record::macros::check_place((#time_name, self.#time_field), #seq_check)?;
                    #(#checks)*
                    #validate
                    ::core::result::Result::Ok(())
                }
            }

            #serde
        };
    })
}

/// Serde's traits: the fields in the declared order, without absent ones, and every read record checked.
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
