"""Recognise answers that refuse, or say that the text does not hold the answer, by how they begin."""

import re

# A sentence that begins with one of these declines to answer.
_DECLINES = {
    "en": (
        r"(?:i(?:'m| am) )?(?:really |so |very |deeply )?(?:sorry|afraid),?(?: but)? (?:that )?(?:i|we) "
        r"(?:can(?:not|'t| not)|could(?:n't| not)|am (?:not able|unable)|'m (?:not able|unable)|won't|do(?:n't|"
        r" not) have)|"
        r"(?:unfortunately|regrettably),? i (?:can(?:not|'t| not)|am (?:unable|not able)|do(?:n't| not) have)|"
        r"i (?:apologi[sz]e|must decline|have to decline|regret)\b|my apologies\b|"
        r"i(?: am|'m) (?:unable|not able) to|"
        r"i (?:can(?:not|'t| not)|won't) (?:help|assist|answer|provide|fulfil|comply|do that|access|see|read|"
        r"generate)|"
        r"i do(?:n't| not) have (?:access|(?:enough |any |sufficient )?(?:information|context|details))|"
        r"as an? (?:ai\b|artificial intelligence|(?:large )?language model\b)|"
        r"i(?: am|'m) (?:just |only )?an ai\b|"
        r"please (?:provide|share|paste|upload) (?:me )?(?:with )?(?:the|a|more|your)\b"
    ),
    "es": (
        r"lo siento,? (?:pero )?no\b|lamento (?:no poder|que no)|no puedo (?:ayudar|responder|proporcionar|cumplir)|"
        r"como (?:modelo de lenguaje|(?:una )?(?:ia|inteligencia artificial))\b"
    ),
    "fr": (
        r"(?:je suis )?désolée?,? (?:mais )?je ne (?:peux|suis)|je ne (?:peux|suis) pas (?:en mesure|capable|"
        r"vous aider|répondre)|"
        r"en tant qu(?:e modèle de langage|'(?:ia|intelligence artificielle|assistant))\b"
    ),
    "de": (
        r"(?:es )?tut mir leid,? (?:aber )?ich kann\b|leider (?:kann ich|bin ich nicht)|"
        r"ich kann (?:dir |ihnen )?(?:dabei |diese (?:frage|anfrage) )?(?:leider )?nicht\b|als (?:ki|"
        r"sprachmodell|künstliche intelligenz)\b"
    ),
    "pt": (
        r"(?:sinto muito|desculpe|lamento),? (?:mas )?(?:eu )?não\b|não posso (?:ajudar|responder|fornecer)|"
        r"como (?:um )?modelo de linguagem\b"
    ),
    "it": (
        r"mi dispiace,? (?:ma )?non\b|non posso (?:aiutar|rispondere|fornire)|"
        r"in quanto modello (?:linguistico|di linguaggio)\b"
    ),
    "ru": (
        r"(?:извините|простите|к сожалению|мне жаль),? (?:но )?(?:я )?не (?:могу|в состоянии|имею)|"
        r"я не (?:могу|в состоянии) (?:ответить|помочь|предоставить|выполнить)|как (?:языковая модель|ии|"
        r"искусственный интеллект)\b"
    ),
    "zh": (
        r"(?:非常|很)?(?:抱歉|对不起|對不起|遗憾|遺憾)[,，]?(?:但)?(?:我)?(?:不能|无法|無法|没有|沒有)|"
        r"我(?:不能|无法|無法)(?:回答|提供|帮助|幫助|满足|确定|協助|协助)|作为(?:一个|一名)?(?:ai|人工智能|语言模型)|"
        r"作為(?:一個|一名)?(?:ai|人工智慧|語言模型)"
    ),
    "ja": r"(?:大変)?(?:申し訳(?:ありません|ございません)|すみません)(?:が)?[、,。]|(?:ai|言語モデル)(?:として|なので)",
    "ko": r"죄송(?:합니다|하지만|해요)|(?:ai|인공지능|언어 모델)(?:로서|이므로|이기 때문)",
    "ar": (
        r"(?:أنا )?(?:آسف|أعتذر|عذر[اًا]+)[،,]? ?(?:لكن(?:ني)? |ولكن(?:ني)? )?لا |لا (?:أستطيع|يمكنني) |"
        r"(?:بصفتي|كنموذج)"
    ),
}
# A sentence that begins with one of these says that the answer is missing.
_TEXT = (
    r"(?:the |this |that |your )?(?:given |provided |above )?(?:text|passage|document|article|chapter|"
    r"excerpt|context|story|book)"
)
_ABSENT = {
    "en": (
        rf"{_TEXT}(?: provided| given| above)? (?:does|did)(?: not|n't) (?:explicitly |directly |specifically )?"
        r"(?:mention|say|state|specify|provide|contain|include|discuss|give|indicate|describe|explain|reveal|address)|"
        rf"(?:there is|there's) (?:no|not any) (?:\w+ )?(?:mention of|information (?:about|on|in)) |"
        rf"(?:this|that|it|the (?:answer|information)) (?:is|was)(?: not|n't) (?:explicitly |directly |specifically )?"
        rf"(?:mentioned|stated|specified|provided|given|discussed|included|found) in {_TEXT}|"
        rf"(?:no|not enough|insufficient) information (?:is |was )?(?:(?:given|provided|available) )?(?:about|on|in) "
    ),
    "es": (
        r"(?:el|este) (?:texto|documento|pasaje|artículo|fragmento) no (?:menciona|dice|especifica|indica|"
        r"proporciona|contiene)"
    ),
    "fr": (
        r"(?:le |ce |l'|cet )(?:texte|document|passage|article|extrait) ne (?:mentionne|dit|précise|indique|"
        r"fournit|contient)"
    ),
    "de": (
        r"(?:der|dieser|das|dieses|im) (?:text|dokument|abschnitt|artikel|auszug) "
        r"(?:erwähnt|sagt|nennt|enthält|gibt|wird)\b[^.!?\n]{0,60}?\b(?:nicht|keine)\b"
    ),
    "pt": r"(?:o|este) (?:texto|documento|trecho|artigo) não (?:menciona|diz|especifica|indica|fornece|contém)",
    "it": (
        r"(?:il|questo) (?:testo|documento|brano|passaggio) non (?:menziona|dice|specifica|indica|fornisce|"
        r"contiene)"
    ),
    "ru": (
        r"(?:в (?:данном |этом )?(?:тексте|документе|отрывке)|(?:данный |этот )?(?:текст|документ|отрывок)) не "
        r"(?:упомина|указ|говорит|сказано|содерж|сообща)"
    ),
    "zh": (
        r"(?:本|该|該|这个|這個|此|所给|提供的|上述)?(?:文本|文章|文档|文檔|文件|文中|原文|段落|内容)(?:中|里|裡)?"
        r"(?:并|並)?(?:没有|沒有|未|没)(?:明确|明確|具体|直接)?(?:提到|提及|说明|說明|提供|指出|包含|给出)"
    ),
    "ja": r"(?:この|本)?(?:文章|文書|本文|テキスト|資料)(?:に|で)は[^。\n]{0,40}(?:ありません|いません|記載がない)",
    "ko": r"(?:이 |본 |주어진 )?(?:글|문서|텍스트|본문|지문)(?:에는?|은|는)[^.\n]{0,40}(?:않|없)",
    "ar": r"(?:لا|لم) (?:يذكر|يحدد|يوضح|يشير|يقدم) (?:هذا )?(?:النص|المستند|المقال|المقطع)",
}
# … unless the sentence goes on to give it.
_BUT = (
    r"(?:\b(?:but|however|although|though|only that|pero|sin embargo|mais|aber|jedoch|mas|porém|ma|però|но|"
    r"однако)\b|但|しかし|が、)"
)

_LONGEST_SENTENCE = 400  # characters, to look no further

# Where a sentence begins; a sentence quoted in another one does not count.
_START = r"(?:\A|(?<=[.!?:。！？：\n]))[ \t*_#>-]*"


def _pattern(*alternatives: str) -> re.Pattern[str]:
    return re.compile(f"{_START}(?:{'|'.join(alternatives)})", re.IGNORECASE)


_DECLINE = _pattern(*_DECLINES.values())
# "Unfortunately, …", "Based on the given text, …"
_OPENING = r"(?:[^.!?。！？\n]{1,50}[,，、،]\s*)?"
_ABSENCE = _pattern(*(f"{_OPENING}(?:{absent})(?![^.!?。！？\\n]*{_BUT})" for absent in _ABSENT.values()))


def declines(text: str, window: int = 120) -> bool:
    """Whether one of the sentences that begin in the first `window` characters refuses to answer."""
    return _begins(_DECLINE, text, window)


def is_refusal(text: str, window: int = 120) -> bool:
    """Whether such a sentence refuses, or says that the text does not hold the answer and leaves it at that."""
    return _begins(_DECLINE, text, window) or _begins(_ABSENCE, text, window)


def _begins(pattern: re.Pattern[str], text: str, window: int) -> bool:
    match = pattern.search(text.strip()[: window + _LONGEST_SENTENCE].replace("’", "'"))
    return match is not None and match.start() < window
