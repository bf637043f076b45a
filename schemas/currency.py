"""Currencies and their minor units by ISO 4217."""

from __future__ import annotations

import re

# ISO 4217, list one of 2026-01-01, codes with a minor unit; and ANG and BGN, withdrawn in 2025 and 2026.
# Not Babel's digits: CLDR counts the coins in use, and gives AFN, ALL, IRR, KPW, LAK, LBP, MGA, MMK, RSD,
# SOS, SYP and YER (ISO: 2) and IQD (ISO: 3) none.
_CODES_BY_MINOR_UNITS = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: """
        AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD
        CDF CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD
        GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA
        MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR
        RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD
        TZS UAH USD USN UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG
    """,
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
MINOR_UNITS = {code: digits for digits, codes in _CODES_BY_MINOR_UNITS.items() for code in codes.split()}
"""Decimals of a currency's minor unit: 2 for USD, 0 for JPY, 3 for KWD."""

UNIT_PATTERN = r"^[a-z][a-z0-9_-]{3,49}$"
"""Ids of custom units: four characters or more, so that none is a currency's code, however it is written."""


def is_unit(name: str) -> bool:
    """Whether it is the id of a custom unit, not a currency."""
    return re.fullmatch(UNIT_PATTERN, name) is not None
